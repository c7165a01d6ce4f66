"""A ledger as lines for people. Pure."""

from collections.abc import Sequence

from rerail_api.v1alpha1 import Forecast, Incident, Ledger, Stage
from rerail_operator.core.ledger import TIMES_OF_AN_INCIDENT
from rerail_operator.shell.ledger.account import Account


def as_text(account: Account) -> str:
    """The whole page: the job, its seconds, the model's view, its interruptions."""
    nodes = f", {account.num_nodes} nodes" if account.num_nodes else ""
    why = f" ({account.reason})" if account.reason else ""
    parts = [
        f"{account.job}: {account.phase or 'never looked at'}{why}{nodes}",
        where_it_went(account.ledger),
        *([by_class(account.ledger)] if account.ledger.lost_seconds_by_class else []),
        *(
            [f"{model(account.ledger, account.num_nodes)}\n{told(account)}"]
            if account.ledger.forecast
            else []
        ),
        *([interruptions(account.incidents)] if account.incidents else []),
    ]
    return "\n\n".join(parts)


def where_it_went(ledger: Ledger) -> str:
    """Every second by stage, and their sum."""
    lost = ledger.lost_seconds
    rows = [("productive", ledger.productive_seconds), *((str(s), lost[s]) for s in Stage if s in lost)]
    wall = ledger.wall_seconds or 1.0
    lines = [f"Where {ledger.wall_seconds:.1f} s went"]
    spent = [(name, seconds) for name, seconds in rows if seconds > 0]
    lines += [f"  {name:<16} {seconds:>8.1f} s {seconds / wall:>6.1%}" for name, seconds in spent]
    total = sum(seconds for _, seconds in rows)
    lines.append(f"  {'sum':<16} {total:>8.1f} s, ETTR {ledger.ettr:.3f}")
    return "\n".join(lines)


def by_class(ledger: Ledger) -> str:
    """What interruptions have cost that are over, the dearest class first."""
    cost = sorted(ledger.lost_seconds_by_class.items(), key=lambda item: -item[1])
    wall = ledger.wall_seconds or 1.0
    lines = [f"  {kind:<16} {seconds:>8.1f} s {seconds / wall:>6.1%}" for kind, seconds in cost]
    return "\n".join(["What interruptions that are over have cost", *lines])


def model(ledger: Ledger, num_nodes: int | None) -> str:
    """What the model was fed with, and the interval that it would choose."""
    view = ledger.forecast or Forecast(
        interruptions_per_thousand_node_days=0, dead_seconds=0, stall_seconds=0, interval_seconds=0, ettr=0
    )
    rate = view.interruptions_per_thousand_node_days
    each = f", one in {duration(86_400_000 / (rate * num_nodes))}" if num_nodes and rate else ""
    saved = ledger.checkpoints
    kept = f"; {saved} were committed, one per {duration(_stepped(ledger) / saved)}" if saved else ""
    both = f"{view.ettr:.3f} predicted in the long run, {ledger.ettr:.3f} measured so far"
    return "\n".join(
        (
            "Model",
            f"  ETTR             {both}",
            f"  interruptions    {rate:.2f} per 1,000 node-days{each}",
            f"  each             {view.dead_seconds:.1f} s dead, and the steps since the last checkpoint",
            f"  a checkpoint     {view.stall_seconds:.2f} s of standing still; "
            f"best every {duration(view.interval_seconds)}{kept}",
        )
    )


def told(account: Account) -> str:
    """How often the ranks are told to save, to be held against what the model would choose."""
    auto = ": auto" if account.interval == "auto" else ""
    if account.told_seconds is not None:
        words = f"to save every {duration(account.told_seconds)} of training (checkpoint.interval{auto})"
    else:
        words = (
            "nothing yet (checkpoint.interval: auto)" if auto else "nothing: the program saves as it likes"
        )
    return f"  told             {words}"


def _stepped(ledger: Ledger) -> float:
    return ledger.productive_seconds + ledger.lost_seconds.get(Stage.REPLAY, 0.0)


def interruptions(incidents: Sequence[Incident]) -> str:
    """One row per incident, its stages in columns."""
    stages = [s for s in TIMES_OF_AN_INCIDENT if any(i.stage_seconds.get(s, 0) >= 0.05 for i in incidents)]
    gpus = any(i.gpu_seconds_lost is not None for i in incidents)
    head = ["#", "when (UTC)", "class", "where", "steps", "s", *(str(s) for s in stages)]
    rows = [head + (["GPU-s"] if gpus else [])]
    for incident in incidents:
        spent = [f"{incident.stage_seconds.get(s, 0.0):.1f}" for s in stages]
        cost = ["" if incident.gpu_seconds_lost is None else f"{incident.gpu_seconds_lost:,.0f}"]
        rows.append([*_who(incident), *spent, *(cost if gpus else [])])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(_cell(row, widths, column) for column in range(len(row))).rstrip() for row in rows]
    gone = incidents[0].number - 1
    older = f", of the last {len(incidents)}; {gone} older ones are counted in the sums only" if gone else ""
    return "\n".join([f"Interruptions{older}", *(f"  {line}" for line in lines)])


def _who(incident: Incident) -> list[str]:
    began = f"{incident.start_time:%m-%d %H:%M:%S}" if incident.start_time else ""
    where = incident.node or (f"node rank {incident.node_rank}" if incident.node_rank is not None else "-")
    steps = "" if incident.steps_lost is None else str(incident.steps_lost)
    took = f"{sum(incident.stage_seconds.values()):.1f}" + ("" if incident.resolved_time else "+")
    return [str(incident.number), began, str(incident.class_), where, steps, took]


def _cell(row: Sequence[str], widths: Sequence[int], column: int) -> str:
    """Words to the left, numbers to the right."""
    text = row[column]
    return text.ljust(widths[column]) if column in (1, 2, 3) else text.rjust(widths[column])


def duration(seconds: float) -> str:
    """Short and exact enough for a person."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h" if seconds < 172_800 else f"{seconds / 86_400:,.3g} days"
