"""Whole matrices out of parts that lie on several ranks: each rank is sent some, works on them, and sends
back to every rank its part of the results. No rank does another's work, and none holds all matrices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rerail_trainer.parallel.groups import exchanged

Box = tuple[slice, slice]
"""Rows and columns of a part in its whole."""


@dataclass(frozen=True)
class Round:
    """Matrices of one shape that the ranks of a group work on at once.

    boxes: for each matrix the part of every member of the group; own: this rank's place in it. copies: every
    member has the matrices whole, and only the results are exchanged. Member j works on the j-th `share` of
    the matrices.
    """

    group: Any
    own: int
    rows: int
    columns: int
    boxes: Sequence[Sequence[Box]]
    share: int
    copies: bool = False

    def run(self, parts: Sequence[Tensor], work: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """parts: this rank's part of every matrix; work: [n, rows, columns] -> the same shape, for each
        matrix alone. Gives this rank's part of every result.
        """
        if len(self._members()) == 1:
            return list(work(torch.stack(list(parts))).unbind())
        mine = self._of(self.own)
        whole = self._copied(parts[mine], parts[0]) if self.copies else self._collected(parts, mine)
        return self._returned(work(whole) if len(whole) else whole, parts, mine)

    def _of(self, member: int) -> slice:
        return slice(member * self.share, (member + 1) * self.share)

    def _members(self) -> range:
        return range(len(self.boxes[0]))

    def _sizes(self, member: int, matrices: slice) -> int:
        return sum(_size(boxes[member]) for boxes in self.boxes[matrices])

    def _copied(self, parts: Sequence[Tensor], like: Tensor) -> Tensor:
        return torch.stack(list(parts)) if parts else like.new_empty(0, self.rows, self.columns)

    def _collected(self, parts: Sequence[Tensor], mine: slice) -> Tensor:
        sent = [self._sizes(self.own, self._of(member)) for member in self._members()]
        received = [self._sizes(member, mine) for member in self._members()]
        flat = torch.cat([part.flatten() for part in parts])
        arrived = exchanged(flat, sent, received, self.group)
        boxes = self.boxes[mine]
        whole = flat.new_empty(len(boxes), self.rows, self.columns)
        begin = 0
        for member in self._members():
            for matrix, box in zip(whole, (of[member] for of in boxes), strict=True):
                size = _size(box)
                target = matrix[box]
                target.copy_(arrived[begin : begin + size].view(target.shape))
                begin += size
        return whole

    def _returned(self, results: Tensor, parts: Sequence[Tensor], mine: slice) -> list[Tensor]:
        boxes = self.boxes[mine]
        leaving = [
            matrix[of[member]].flatten()
            for member in self._members()
            for matrix, of in zip(results, boxes, strict=True)
        ]
        sent = [self._sizes(member, mine) for member in self._members()]
        received = [self._sizes(self.own, self._of(member)) for member in self._members()]
        flat = torch.cat(leaving) if leaving else results.flatten()
        arrived = exchanged(flat, sent, received, self.group)
        return [
            own.view(part.shape)
            for own, part in zip(torch.split(arrived, [p.numel() for p in parts]), parts, strict=True)
        ]


def _size(box: Box) -> int:
    height, width = (part.stop - part.start for part in box)
    return int(height * width)
