"""How often the ranks are told to save, and who has not heard of it yet."""

from rerail_api.contract import AgentState
from rerail_api.spec import CheckpointSpec
from rerail_api.status import Forecast
from rerail_api.v1alpha1 import TrainingJob

from .gang import Seat
from .plan import Action, Advise

WORTH_TELLING = 0.2
"""The share by which the model's optimum must have moved: around it ETTR is flat, and ranks are left be."""


def interval_to_tell(spec: CheckpointSpec, told: int | None, view: Forecast | None) -> int | None:
    """Seconds of training between checkpoints; None: the program's own. `told`: what is told so far."""
    if not isinstance(spec.interval, str):
        return spec.interval
    if view is None:
        return told  # it has never run: nothing is known of it, and nobody listens
    low, high = spec.auto_bounds
    best = min(max(round(view.interval_seconds), low), high)
    if told is not None and low <= told <= high and abs(best - told) <= WORTH_TELLING * told:
        return told
    return best


def unadvised(job: TrainingJob, taken: tuple[Seat, ...]) -> tuple[Action, ...]:
    """Tell those whose running ranks were told another interval; agents that take no advice are left out."""
    round_, seconds = job.status.round, job.status.checkpoint_interval_seconds or 0
    late = tuple(
        s.agent.pod_uid
        for s in taken
        if s.agent is not None and s.agent.advised not in (None, seconds) and s.at(AgentState.RUNNING, round_)
    )
    return (Advise(late, round_, seconds),) if late else ()
