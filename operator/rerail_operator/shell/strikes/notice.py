"""The event on a node that is avoided from now on: what `kubectl describe node` shows."""

from datetime import datetime
from typing import Final

from rerail_operator.core.strikes import Verdict, in_words
from rerail_operator.shell.cluster import Object
from rerail_operator.shell.events import COMPONENT

NAMESPACE: Final = "default"
"""Where events about things without a namespace are kept, by the kubelet as well."""
REASON: Final = "NodeAvoided"


def sentence(node: str, verdict: Verdict) -> str:
    until = f" until {verdict.until:%Y-%m-%d %H:%M} UTC" if verdict.until else ""
    return f"avoided by all jobs{until}: {in_words(verdict)}; `rerail nodes --clear {node}` lets it in again"


def event(node: str, verdict: Verdict, now: datetime) -> Object:
    """Named by when the node was struck: to tell it twice, after a change of leaders, makes one event."""
    at = f"{now:%Y-%m-%dT%H:%M:%SZ}"
    since = (verdict.since or now).timestamp()
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{node}.struck-{since:.0f}", "namespace": NAMESPACE},
        # As the kubelet does: the name stands for the UID.
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
        "type": "Warning",
        "reason": REASON,
        "message": sentence(node, verdict),
        "count": 1,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
    }
