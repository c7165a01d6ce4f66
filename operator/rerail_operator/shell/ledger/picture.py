"""A ledger as a picture: the time line, the interruptions under the glass, and the sums. Needs matplotlib."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rerail_api.v1alpha1 import Incident, Stage
from rerail_operator.core.ledger import TIMES_OF_AN_INCIDENT
from rerail_operator.shell.ledger.account import Account
from rerail_operator.shell.ledger.table import duration

INK, GRID, PRODUCTIVE = "#37352f", "#e9e9e7", "#4f9d69"
COLOURS: Mapping[Stage, str] = {
    Stage.DETECTION: "#e03e3e",
    Stage.DECISION: "#ad1a72",
    Stage.STOP: "#6b2737",
    Stage.PLACEMENT: "#d9730d",
    Stage.START: "#dfab01",
    Stage.RENDEZVOUS: "#6940a5",
    Stage.LOAD: "#0b6e99",
    Stage.COMPILE: "#64b5d1",
    Stage.REPLAY: "#9aa55b",
    Stage.CHECKPOINT_STALL: "#4d6461",
    Stage.QUEUED: "#c8c6c2",
    Stage.SUSPENDED: "#8f8d89",
}
_LIGHT = (Stage.QUEUED, Stage.START, Stage.COMPILE)
_DPI, _WIDTH, _ROW = 150, 11.0, 0.3
_LEAST_SHARE = 0.0015
"""Of the time line's length: a shorter interruption would not be seen on it."""


def save(account: Account, path: Path) -> None:
    """Write the picture in the format that the file's suffix names. Raises OSError, ValueError."""
    draw(account).savefig(path)


def draw(account: Account) -> Figure:
    """Three panels: when, what of it in which stage, and how much in all."""
    rows = max(1, len(account.incidents))
    heights = [1.2, rows * _ROW + 0.6, 1.0]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 1.9), dpi=_DPI, layout="constrained")
    line, glass, sums = figure.subplots(3, 1, height_ratios=heights)
    figure.suptitle(_title(account), x=0.01, ha="left", color=INK, fontsize=11)
    _draw_line(line, account)
    _draw_glass(glass, account)
    _draw_sums(sums, account)
    _legend(figure, account)
    return figure


def _title(account: Account) -> str:
    ledger, count = account.ledger, account.incidents[-1].number if account.incidents else 0
    view = f", {ledger.forecast.ettr:.3f} predicted" if ledger.forecast else ""
    many = f"{count} interruption{'' if count == 1 else 's'}"
    return f"{account.job}: {duration(ledger.wall_seconds)}, {many}, ETTR {ledger.ettr:.3f}{view}"


def _draw_line(axes: Axes, account: Account) -> None:
    """Productive where nothing else is known: the status remembers the last sixteen interruptions."""
    _frame(axes, "when (UTC); what came before the first start is grey, short interruptions are drawn wider")
    began, ended = _span(account)
    ran = began + timedelta(seconds=_before_running(account))
    span = _days(ended) - _days(began)
    axes.broken_barh([(_days(began), _days(ran) - _days(began))], (0, 1), color=GRID)
    axes.broken_barh([(_days(ran), _days(ended) - _days(ran))], (0, 1), color=PRODUCTIVE)
    for incident in account.incidents:
        if incident.start_time is None:
            continue
        at, scale = _days(incident.start_time), 1 / 86_400.0
        took = sum(incident.stage_seconds.values()) * scale
        grow = max(1.0, _LEAST_SHARE * span / took) if took else 1.0
        for stage, seconds in _in_order(incident):
            axes.broken_barh([(at, seconds * scale * grow)], (0, 1), color=COLOURS[stage])
            at += seconds * scale * grow
        axes.annotate(
            str(incident.number), (_days(incident.start_time), 1.06), fontsize=7, color=INK, ha="center"
        )
    axes.set_xlim(_days(began), _days(ended))
    axes.set_ylim(0, 1.4)
    axes.set_yticks([])
    new_locator: Callable[[], Any] = AutoDateLocator
    formatter: Callable[[Any], Any] = ConciseDateFormatter
    locator = new_locator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(formatter(locator))
    axes.xaxis.get_offset_text().set_fontsize(7)


def _days(at: datetime) -> float:
    """The number of a date on matplotlib's axes."""
    return at.timestamp() / 86_400


def _draw_glass(axes: Axes, account: Account) -> None:
    _frame(axes, "seconds of each interruption, by stage")
    for row, incident in enumerate(account.incidents):
        left = 0.0
        for stage, seconds in _in_order(incident):
            axes.barh(row, seconds, left=left, height=0.7, color=COLOURS[stage])
            left += seconds
        count = incident.steps_lost
        steps = "" if count is None else f", {count} step{'' if count == 1 else 's'}"
        lost = incident.gpu_seconds_lost or 0.0
        cost = f", {lost / 3600:,.1f} GPU-h" if lost > 3600 else f", {lost:.0f} GPU-s" if lost else ""
        axes.annotate(
            f" {left:.1f} s{steps}{cost}", (left, row), va="center", fontsize=7, color=INK, clip_on=False
        )
    names = [f"{i.number}  {i.class_.value}  {i.node or ''}" for i in account.incidents]
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(max(1, len(names)) - 0.4, -0.6)
    axes.margins(x=0.25)
    axes.set_xlim(left=0)
    if not names:
        axes.annotate("none", (0.01, 0.4), xycoords="axes fraction", color=INK)


def _draw_sums(axes: Axes, account: Account) -> None:
    ledger = account.ledger
    parts = [(stage, ledger.lost_seconds[stage]) for stage in TIMES_OF_AN_INCIDENT if _lost(account, stage)]
    total, left = sum(seconds for _, seconds in parts), 0.0
    share = total / ledger.wall_seconds if ledger.wall_seconds else 0.0
    _frame(axes, f"all that was lost: {duration(total)}, {share:.1%} of the wall clock")
    for stage, seconds in parts:
        axes.barh(0, seconds, left=left, height=0.8, color=COLOURS[stage])
        if seconds > 0.09 * total:
            colour = INK if stage in _LIGHT else "white"
            where, words = (left + seconds / 2, 0), f"{stage.value}\n{duration(seconds)}"
            axes.annotate(words, where, ha="center", va="center", fontsize=7, color=colour)
        left += seconds
    axes.set_xlim(0, max(total, 1e-9))
    axes.set_yticks([])


def _lost(account: Account, stage: Stage) -> float:
    return account.ledger.lost_seconds.get(stage, 0.0)


def _legend(figure: Figure, account: Account) -> None:
    known = [
        (f"productive {duration(account.ledger.productive_seconds)}", PRODUCTIVE),
        *(
            (f"{s.value} {duration(_lost(account, s))}", COLOURS[s])
            for s in TIMES_OF_AN_INCIDENT
            if _lost(account, s)
        ),
    ]
    handles = [Patch(color=colour, label=text) for text, colour in known]
    figure.legend(handles=handles, loc="outside lower left", ncols=6, fontsize=7, frameon=False)


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=8, color=INK)
    axes.tick_params(labelsize=7, colors=INK, length=0)
    axes.grid(visible=True, axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _in_order(incident: Incident) -> list[tuple[Stage, float]]:
    """Its stages as an interruption goes through them; their order in time is not recorded."""
    spent = incident.stage_seconds
    return [(stage, spent[stage]) for stage in TIMES_OF_AN_INCIDENT if spent.get(stage, 0) > 0]


def _span(account: Account) -> tuple[datetime, datetime]:
    ledger = account.ledger
    if account.created is not None:
        return account.created, account.created + timedelta(seconds=max(ledger.wall_seconds, 1.0))
    if ledger.stage_since is None:
        raise ValueError("it does not say when the job was created: there is no time line to draw")
    return ledger.stage_since - timedelta(seconds=max(ledger.wall_seconds, 1.0)), ledger.stage_since


def _before_running(account: Account) -> float:
    """Seconds before the first productive one: what the stages of a start hold beyond the interruptions."""
    stages = (Stage.QUEUED, Stage.PLACEMENT, Stage.START, Stage.RENDEZVOUS, Stage.LOAD, Stage.COMPILE)
    lost = account.ledger.lost_seconds
    later = sum(i.stage_seconds.get(s, 0.0) for i in account.incidents for s in stages)
    known = max(0.0, sum(lost.get(s, 0.0) for s in stages) - later)
    firsts = [i.start_time for i in account.incidents if i.number == 1 and i.start_time]
    began, _ = _span(account)
    limit = (firsts[0] - began).total_seconds() if firsts else account.ledger.wall_seconds
    return min(known, max(limit, 0.0))
