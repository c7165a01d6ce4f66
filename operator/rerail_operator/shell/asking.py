"""A person's question to the API server, with the person's own rights; what fails is told in one line."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from rerail_operator.shell.cluster import Cluster, Forbidden, Unavailable

Answer = TypeVar("Answer")

IN_POD_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
NO_CREDENTIALS: Final = "no usable credentials"


class NoAnswer(Exception):
    """The API server could not be asked, or does not answer; the text says what to do, in one line."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which cluster, and where in it; None: as kubectl would."""

    namespace: str | None = None
    kubeconfig: str | None = None
    context: str | None = None


def ask(place: Place, question: Callable[[Cluster], Awaitable[Answer]]) -> Answer:
    """The answer. Raises `NoAnswer`, and NotFound and the like for the question to tell of."""
    _look_for_packages()
    if not _in_pod(place):
        _look_for_files(place)
    try:
        return asyncio.run(_put(place, question))
    except Unavailable as error:
        raise NoAnswer(_one_line(str(error), _hint(str(error), place))) from None
    except Forbidden as error:
        # The error speaks to operators; here a person has asked.
        words = str(error).partition(": ")[2] or str(error)
        raise NoAnswer(_one_line(words, "ask for that right whoever runs the cluster")) from None


async def _put(place: Place, question: Callable[[Cluster], Awaitable[Answer]]) -> Answer:
    # Imported here: without a cluster nobody waits for these packages, or needs them.
    from rerail_operator.shell.kube.client import KubeCluster

    async with KubeCluster.from_environment(place.kubeconfig, place.context) as cluster:
        return await question(cluster)


def namespace_of(place: Place) -> str:
    """The namespace that kubectl would take: the one named, of the pod, or of the context.
    Raises `NoAnswer`.
    """
    if place.namespace:
        return place.namespace
    if _in_pod(place) and IN_POD_NAMESPACE.exists():
        return IN_POD_NAMESPACE.read_text(encoding="utf-8").strip()
    _look_for_packages()
    _look_for_files(place)
    from kubernetes.config import ConfigException, kube_config

    read: Callable[..., Any] = kube_config.list_kube_config_contexts
    try:
        contexts, active = read(_named(place))
    except (ConfigException, OSError, yaml.YAMLError) as error:
        words = f"{NO_CREDENTIALS} for the API server: {error}"
        raise NoAnswer(_one_line(words, _hint(words, place))) from None
    chosen = active
    if place.context is not None:
        chosen = next((c for c in contexts if c["name"] == place.context), active)
    return str((chosen.get("context") or {}).get("namespace") or "default")


def _look_for_packages() -> None:
    try:
        import aiohttp  # noqa: F401
        import kubernetes  # noqa: F401
    except ModuleNotFoundError as error:
        missing = (error.name or "kubernetes").partition(".")[0]
        raise NoAnswer(f"asking a cluster needs the package {missing}: pip install {missing}") from None


def _look_for_files(place: Place) -> None:
    named = _named(place)
    files = [Path(name).expanduser() for name in (named or "~/.kube/config").split(os.pathsep) if name]
    if not any(file.exists() for file in files):
        what = f"{', '.join(map(str, files))} does not exist, so no cluster is known"
        raise NoAnswer(f"{what}; write --kubeconfig FILE, or let KUBECONFIG name one")


def _named(place: Place) -> str | None:
    return place.kubeconfig or os.environ.get("KUBECONFIG") or None


def _in_pod(place: Place) -> bool:
    return _named(place) is None and bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def _hint(words: str, place: Place) -> str:
    if NO_CREDENTIALS not in words:
        return "`kubectl cluster-info` tells whether kubectl reaches it"
    if place.context is not None and place.context in words:
        return "`kubectl config get-contexts` lists those that are there"
    return "`kubectl config view` shows what is configured"


def _one_line(words: str, hint: str) -> str:
    return f"{' '.join(words.split())}; {hint}"
