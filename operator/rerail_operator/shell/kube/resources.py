"""Where each kind lives on the API server, and every right that this adapter needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from rerail_api.contract import API_VERSION, GROUP, PLURAL
from rerail_operator.shell.cluster import Kind


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource of the API server."""

    api_version: str
    plural: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of the collection (of all namespaces when none is given), object or subresource."""
        parts = ["api" if "/" not in self.api_version else "apis", *self.api_version.split("/")]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts += [self.plural, *filter(None, (name, subresource))]
        return "/" + "/".join(quote(part, safe="") for part in parts)


RESOURCES: Final[Mapping[Kind, Resource]] = {
    Kind.POD: Resource("v1", "pods"),
    Kind.NODE: Resource("v1", "nodes", namespaced=False),
    Kind.JOB: Resource(API_VERSION, PLURAL),
    Kind.EVENT: Resource("v1", "events"),
    Kind.CONFIG_MAP: Resource("v1", "configmaps"),
    Kind.REVISION: Resource("apps/v1", "controllerrevisions"),
    Kind.LEASE: Resource("coordination.k8s.io/v1", "leases"),
    Kind.SECRET: Resource("v1", "secrets"),
}

CLUSTER_RIGHTS: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    ("", "pods"): frozenset({"get", "list", "watch", "create", "patch", "delete", "deletecollection"}),
    ("", "nodes"): frozenset({"list", "watch"}),
    ("", "events"): frozenset({"create", "patch"}),
    ("", "configmaps"): frozenset({"create", "get"}),
    ("apps", "controllerrevisions"): frozenset({"create", "get"}),
    (GROUP, PLURAL): frozenset({"list", "watch", "delete"}),
    (GROUP, f"{PLURAL}/status"): frozenset({"update"}),
    ("apiextensions.k8s.io", "customresourcedefinitions"): frozenset({"get"}),
}
"""(group, resource) -> verbs used in all namespaces; the chart's role is tested against this table."""

OWN_NAMESPACE_RIGHTS: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    ("coordination.k8s.io", "leases"): frozenset({"create", "get", "update"}),
    ("", "secrets"): frozenset({"create", "get"}),
    ("", "configmaps"): frozenset({"update"}),
}
"""The same within the operator's own namespace only."""
