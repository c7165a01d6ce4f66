"""What the ranks report, folded into the status: step, loss, checkpoints, and where a round resumed from."""

from typing import Any

from rerail_api.status import CheckpointMark, Ledger
from rerail_api.status import Progress as ProgressStatus
from rerail_api.v1alpha1 import TrainingJob

from .world import Progress, World


def newest(world: World, round_: int) -> Progress | None:
    """The newest progress of that round: of the agent that is furthest (rank 0's reports, as a rule)."""
    told = [
        (uid, progress)
        for uid, agent in world.agents.items()
        if (progress := agent.told_of(round_)) is not None and progress.says_where
    ]
    if not told:
        return None
    told.sort(key=lambda pair: pair[0])  # of two that are equally far always the same one
    return max(
        (p for _, p in told),
        key=lambda p: (p.step if p.step is not None else -1, p.at.timestamp() if p.at else 0.0),
    )


def last_step(world: World, job: TrainingJob) -> int | None:
    """The progress point: last step of the round that is ending, or the last one known."""
    told = newest(world, job.status.round)
    if told is not None and told.step is not None:
        return told.step
    return job.status.progress.step


def highest_step(ledger: Ledger, told: Progress | None) -> int | None:
    """The highest step ever seen, in any round."""
    known = [s for s in (ledger.highest_step, told.step if told else None) if s is not None]
    return max(known) if known else None


def progress_changes(job: TrainingJob, told: Progress | None) -> dict[str, Any]:
    """Fields of the status that follow from a progress report."""
    if told is None:
        return {}
    before = job.status.progress
    changes: dict[str, Any] = {}
    if told.step is not None:
        first = next((f for f in (before.first_loss, told.first_loss, told.loss) if f is not None), None)
        changes["progress"] = ProgressStatus(
            step=told.step,
            total_steps=told.total_steps if told.total_steps is not None else before.total_steps,
            tokens_per_second=told.tokens_per_second,
            tokens=told.tokens,
            loss=told.loss if told.loss is not None else before.loss,
            first_loss=first,
            time=told.at,
        )
    if told.checkpoint_step is not None:
        mark = job.status.last_checkpoint
        if mark is None or told.checkpoint_step > mark.step:
            changes["last_checkpoint"] = CheckpointMark(step=told.checkpoint_step, time=told.at)
    if told.resumed_from is not None:
        changes["resumed_from_step"] = told.resumed_from
    return changes
