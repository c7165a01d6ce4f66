"""What one step of `decide` came to, before it is dressed as a Plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from rerail_api.status import ConditionType, Phase, Stage

from .plan import Action, Note
from .reasons import Reason
from .world import Placement


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where the job stands after this step, what changes in its status, and what is to be done.

    `changes` are fields of TrainingJobStatus; all that follows from the world (phase, counts, progress,
    ledger) is added by `publish`. `intent`: the changes must be written and read back before anything
    is done.
    """

    phase: Phase
    reason: Reason
    message: str
    stage: Stage
    changes: Mapping[str, Any] = field(default_factory=dict)
    conditions: tuple[tuple[ConditionType, bool, Reason, str], ...] = ()
    actions: tuple[Action, ...] = ()
    notes: tuple[Note, ...] = ()
    intent: bool = False
    requeue_after: timedelta | None = None
    placement: Placement | None = None
    fault_at: datetime | None = None  # when what was noticed now really happened
    stood_still: bool = False  # and since then no step was made, though the ledger took it for training
    unheard: bool = False  # whether the ranks ran will be told later: until then no second is booked
    memory: Mapping[str, datetime] = field(default_factory=dict)
    because: str = ""
