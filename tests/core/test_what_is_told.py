"""What a person reads at the right moment: events of a job that waits, counters that forget, a stop that lasts."""

from rerail_api.status import ConditionStatus, ConditionType, RestartCounts

from .builders import an_incident, fresh, running


def test_a_job_that_waits_says_so_once_per_reason() -> None:
    scene = fresh().refused("InsufficientNodes", "1st in the queue: needs 2 nodes; 1 fits")
    assert [(n.reason, n.level) for n in scene.plan().notes] == [("InsufficientNodes", "Normal")]
    assert scene.written().later(30).plan().notes == ()
    never = scene.written().refused("NeverFits", "needs 2 nodes; the cluster has 1")
    assert [(n.reason, n.level) for n in never.plan().notes] == [("NeverFits", "Warning")]


def test_progress_past_the_last_incident_forgets_the_charged_restarts_since() -> None:
    counts = RestartCounts(total=1, charged=1, since_progress=1)
    scene = running().status(restarts=counts, round=2, released_round=2)
    scene = scene.incident(an_incident(progress_step=40)).all(round=2)
    before = scene.steps(40).plan().status
    assert before is not None and before.restarts.since_progress == 1
    past = scene.steps(41).plan().status
    assert past is not None and past.restarts == RestartCounts(total=1, charged=1, since_progress=0)


def test_suspended_is_true_only_once_nothing_runs() -> None:
    scene = running().spec(suspend=True).written()
    told = scene.job.status.condition(ConditionType.SUSPENDED)
    assert told is not None and (told.status, told.reason) == (ConditionStatus.FALSE, "Suspending")
    gone = scene.gone(0).gone(1).written().job.status
    assert gone.is_true(ConditionType.SUSPENDED) and not gone.is_true(ConditionType.ADMITTED)


def test_time_spent_suspended_does_not_count_against_the_active_deadline() -> None:
    scene = running(activeDeadlineSeconds=100).later(90)
    assert scene.job.status.start_time is not None
    stopped = scene.spec(suspend=True).written().gone(0).gone(1).written()
    assert stopped.job.status.start_time is None
    later = stopped.later(1000).plan().status
    assert later is not None and not later.finished
