"""The moments of a save, and who may watch them. Torch-free: the writer knows them as well."""

from collections.abc import Callable
from enum import Enum


class SavePoint(Enum):
    """Moments of a save, in order, at which a process may die without harm; reported to an observer."""

    DUE = "due"
    STAGED = "staged"
    FOLDER_MADE = "folder-made"
    TENSORS_WRITTEN = "tensors-written"
    FILES_WRITTEN = "files-written"
    ALL_RANKS_WRITTEN = "all-ranks-written"
    MANIFEST_WRITTEN = "manifest-written"
    COMMITTED = "committed"
    TAKEN_OUT = "taken-out"
    """An older step is no checkpoint any more, and not yet removed."""
    PRUNED = "pruned"


Observer = Callable[[SavePoint, int, int], None]
"""Told every point, the step, and the process id of this rank's writer, which waits until this returns."""
