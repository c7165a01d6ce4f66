"""The stored status with what was decided since: progress and ledger move faster than they are written."""

from rerail_api.status import TrainingJobStatus


def overlaid(stored: TrainingJobStatus, decided: TrainingJobStatus | None) -> TrainingJobStatus:
    """`stored`, with the soft fields of the newest decision wherever they are about the same round.

    Without `decided` (a new leader) the stored status stands: at most ten seconds of progress are told again.
    """
    if decided is None:
        return stored
    newer: dict[str, object] = {}
    if _booked_until(decided) >= _booked_until(stored):
        newer["ledger"] = decided.ledger
    if decided.round == stored.round:
        newer["progress"] = decided.progress
        newer["last_checkpoint"] = decided.last_checkpoint
        newer["resumed_from_step"] = decided.resumed_from_step
    if [i.number for i in decided.incidents] == [i.number for i in stored.incidents]:
        newer["incidents"] = decided.incidents
    return stored.model_copy(update=newer)


def _booked_until(status: TrainingJobStatus) -> float:
    since = status.ledger.stage_since
    return since.timestamp() if since is not None else 0.0
