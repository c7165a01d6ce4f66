"""Our tensor names <-> those of the Hugging Face layout, by the tables of `architectures`. Torch-free."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .architectures import ROOT_TENSORS, Architecture

_IN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_EXPERT = "{e}"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Counterpart:
    """What one of our tensors is called there: one name, or one per expert, in order."""

    names: tuple[str, ...]
    per_expert: bool

    def shape(self, ours: Shape) -> Shape:
        """Of each of `names`, where our tensor has the shape `ours`."""
        return ours[1:] if self.per_expert else ours


def counterparts(architecture: Architecture, shapes: Mapping[str, Shape]) -> dict[str, Counterpart]:
    """Our name -> theirs, for those of our tensors that the architecture has. shapes: of whole tensors."""
    found = {}
    for name, shape in shapes.items():
        pattern = _pattern(architecture, name)
        if pattern is None:
            continue
        per_expert = _EXPERT in pattern
        experts = range(shape[0]) if per_expert else range(1)
        found[name] = Counterpart(tuple(pattern.replace(_EXPERT, str(e)) for e in experts), per_expert)
    return found


def _pattern(architecture: Architecture, name: str) -> str | None:
    inside = _IN_BLOCK.fullmatch(name)
    if inside is None:
        return ROOT_TENSORS.get(name)
    theirs = architecture.tensors.get(inside.group(2))
    return None if theirs is None else f"model.layers.{inside.group(1)}.{theirs}"
