"""What the shell remembers about a job between passes. All of it may be lost at any moment: it is read again
from the cluster, or decided again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rerail_api.status import TrainingJobStatus
from rerail_operator.core.world import Placement, Rejection, SlowRank

MAX_REJECTIONS = 8


@dataclass(slots=True)
class JobMemory:
    """One job UID's memory."""

    decided: TrainingJobStatus | None = None  # the newest, ahead of the written one by up to 10 s
    notes: Mapping[str, datetime] = field(default_factory=dict)  # Plan.memory
    claim: Placement | None = None
    template: Mapping[str, Any] | None = None  # the frozen one, read back
    template_revision: str = ""
    config_map: str = ""
    dry_run_shape: str = ""  # shape hash that the API server accepted
    rejections: tuple[Rejection, ...] = ()
    rejections_of: tuple[int, int] = (-1, -1)  # (generation, round) that they were about
    last_write: float = float("-inf")  # monotonic
    unwritten_since: float | None = (
        None  # monotonic: since when a passing station is ahead of what is written
    )
    gang_deletion: tuple[float, int | None] | None = (
        None  # the last one: monotonic, grace; None once a pod came
    )
    slow: tuple[SlowRank, ...] | None = None
    compare_from: float = float("-inf")  # monotonic: when the ranks may be compared again
    passed: bool = False  # a pass has been made since leadership began

    def reject(self, rejection: Rejection) -> None:
        """Remember the server's no; the newest are kept."""
        kept = [
            r for r in self.rejections if (r.action, r.pod_name) != (rejection.action, rejection.pod_name)
        ]
        self.rejections = tuple([*kept, rejection][-MAX_REJECTIONS:])

    def forget_rejections_of_other(self, generation: int, round_: int) -> None:
        """A changed spec or a new round makes old refusals moot."""
        if self.rejections_of != (generation, round_):
            self.rejections_of = (generation, round_)
            # The dry run's no is about the template: only a changed spec can cure it.
            self.rejections = tuple(r for r in self.rejections if r.action == "DryRun")
