"""What the operator's code asks of the API server, read from its source; what the chart grants.

Every call of the Cluster port names its kind as `Kind.X`. A call shape that this module does not know makes
it raise, so a new one cannot slip through.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rerail_operator.shell.cluster import Kind
from rerail_operator.shell.kube.resources import RESOURCES

from .checkout import CHART, SHELL, syntax

Right = tuple[str, str, str]
"""(API group, resource or path, verb)."""

VERBS = {
    "create": {"create"},
    "get": {"get"},
    "replace": {"update"},
    "patch": {"patch"},
    "delete": {"delete"},
    "delete_collection": {"deletecollection"},
    "list": {"list"},
    "watch": {"watch"},
    "Selection": {"list", "watch"},  # what an informer reads
    "_ensure": {"create", "get"},  # created, or looked at where it exists
}
OWN_NAMESPACE = {Kind.LEASE, Kind.SECRET}
# The in-memory cluster and `rerail run` never meet an API server; the adapter passes kinds on; `rerail ledger`
# and `rerail nodes` ask with the rights of the person who calls them.
ELSEWHERE = re.compile(r"/shell/(local/|kube/|ledger/|memory)|/shell/(cluster|strikes/command)\.py$")
OWN_CONFIG_MAP = ("", "configmaps", "update")
"""One ConfigMap is changed, and it lies in the operator's own namespace; those of jobs are made and read."""
CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"
PLAIN_PATHS = ("/openid/", "/.well-known/")


class UnknownCall(Exception):
    """A use of a kind in a way that this module has not been taught."""


def used() -> tuple[set[Right], set[Right]]:
    """Rights that the code uses: in all namespaces, and in the operator's own only."""
    everywhere: set[Right] = set()
    own: set[Right] = set()
    for path in sorted(SHELL.rglob("*.py")):
        if not ELSEWHERE.search(path.as_posix()):
            for kind, right in _calls(path):
                (own if kind in OWN_NAMESPACE or right == OWN_CONFIG_MAP else everywhere).add(right)
            everywhere |= _paths(path) | _served_by_kopf(path)
    return everywhere, own


def _calls(path: Path) -> Iterator[tuple[Kind, Right]]:
    explained = set()
    for call in ast.walk(syntax(path)):
        if isinstance(call, ast.Call) and call.args and (kind := _kind(call.args[0])) is not None:
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name not in VERBS:
                raise UnknownCall(f"{path.name}:{call.lineno}: {name}({ast.unparse(call.args[0])}, ...)")
            explained.add(id(call.args[0]))
            resource = RESOURCES[kind]
            status = any(word.arg == "status" and _true(word.value) for word in call.keywords)
            for verb in VERBS[name]:
                yield kind, (resource.group, resource.plural + ("/status" if status else ""), verb)
    for node in ast.walk(syntax(path)):
        if _kind(node) is not None and id(node) not in explained and not _compared(path, node):
            raise UnknownCall(f"{path.name}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)}")


def _compared(path: Path, node: ast.AST) -> bool:
    """`kind is Kind.POD` asks nothing of the server."""
    return any(
        node in (compare.left, *compare.comparators)
        for compare in ast.walk(syntax(path))
        if isinstance(compare, ast.Compare)
    )


def _kind(node: ast.AST) -> Kind | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Kind":
        return Kind[node.attr]
    return None


def _true(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _paths(path: Path) -> set[Right]:
    """Plain paths that are fetched, written as constants."""
    rights: set[Right] = set()
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.startswith(CRD_PATH):
                rights.add(("apiextensions.k8s.io", "customresourcedefinitions", "get"))
            elif node.value.startswith(PLAIN_PATHS):
                rights.add(("", node.value, "get"))
    return rights


def _served_by_kopf(path: Path) -> set[Right]:
    """Resources that kopf watches for us: `@kopf.on.event(...)` and its like."""
    serves = any(
        isinstance(node, ast.Call) and ast.unparse(node.func).startswith("kopf.on.event")
        for node in ast.walk(syntax(path))
    )
    job = RESOURCES[Kind.JOB]
    return {(job.group, job.plural, "list"), (job.group, job.plural, "watch")} if serves else set()


def granted() -> tuple[set[Right], set[Right]]:
    """Rights in the chart's rules: in all namespaces, and in the operator's own only."""
    rules: dict[str, list[dict[str, Any]]] = yaml.safe_load((CHART / "files" / "rbac-rules.yaml").read_text())
    assert set(rules) == {"cluster", "namespace"}
    return _flat(rules["cluster"]), _flat(rules["namespace"])


def _flat(rules: list[dict[str, Any]]) -> set[Right]:
    return {
        (group, target, verb)
        for rule in rules
        for group in rule.get("apiGroups", [""])
        for target in (*rule.get("resources", ()), *rule.get("nonResourceURLs", ()))
        for verb in rule["verbs"]
    }
