"""Is the CRD in the cluster the one that this operator was built with? Under another one it leads nothing."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from rerail_api.contract import ANNOTATION_SCHEMA_HASH, GROUP, PLURAL
from rerail_api.crd import schema_hash

from .cluster import ClusterError, NotFound

CRD_NAME = f"{PLURAL}.{GROUP}"
CRD_PATH = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD_NAME}"
COMMAND = (
    "kubectl apply --server-side --force-conflicts -f crds/trainingjobs.yaml"
    " (or: helm show crds CHART | kubectl apply --server-side --force-conflicts -f -)"
)


async def crd_problem(fetch: Callable[[str], Awaitable[Mapping[str, Any]]]) -> str:
    """What keeps this operator from leading, with the command that helps; "" when all is well."""
    wanted = schema_hash()
    try:
        found = await fetch(CRD_PATH)
    except NotFound:
        return f"the CRD {CRD_NAME} is not installed; apply the one of this release: {COMMAND}"
    except ClusterError as error:
        return f"the CRD {CRD_NAME} cannot be read: {error}"
    annotations = found.get("metadata", {}).get("annotations") or {}
    there = annotations.get(ANNOTATION_SCHEMA_HASH, "none")
    if there == wanted:
        return ""
    return (
        f"the CRD {CRD_NAME} has schema {there}, this operator needs {wanted} (helm does not upgrade CRDs); "
        f"apply the one of this release: {COMMAND}"
    )
