"""`rerail explain`: what would be decided for a saved world, and why."""

from pathlib import Path

from rerail_operator.core.decide import decide
from rerail_operator.core.explain import explain
from rerail_operator.shell.snapshot import BadSnapshot, read_snapshot

__all__ = ["BadSnapshot", "explain_file"]


def explain_file(path: Path) -> str:
    """The pass over the world in this file, in words. Raises `BadSnapshot`."""
    scene = read_snapshot(path)
    return explain(scene.world, decide(scene.world, scene.now), scene.now)
