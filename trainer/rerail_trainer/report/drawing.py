"""The picture of runs: one column of panels over the steps, one colour per run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullLocator

from .runs import Line, RunLog

COLOURS = ("#0b6e99", "#d9730d", "#4d6461", "#ad1a72", "#6940a5", "#dfab01")
LOST, RESTART, INK, GRID = "#8f8d89", "#e03e3e", "#37352f", "#e9e9e7"
_WIDTH, _HEIGHTS = 10.0, {"loss": 3.4, "rate": 1.5, "mfu": 1.3, "stall": 1.3}
_DPI = 150


@dataclass(frozen=True)
class _Panel:
    """One strip: what it shows, and how its axis is written."""

    key: str
    title: str
    value_of: Callable[[Line], float | None]
    style: Callable[[Axes], None]


def _loss_axis(axes: Axes) -> None:
    # Logarithmic, or the first steps would press all the others flat.
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _rate_axis(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_ylim(bottom=0)


def _share_axis(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.set_ylim(bottom=0)


_PANELS = (
    _Panel("loss", "loss, nats per token (logarithmic)", lambda line: line.get("loss"), _loss_axis),
    _Panel("rate", "tokens per second", lambda line: line.get("tokens_per_second"), _rate_axis),
    _Panel("mfu", "MFU", lambda line: line.get("mfu"), _share_axis),
)


def draw(runs: Sequence[RunLog], smooth: int = 0) -> Figure:
    """Panels that have something to show. smooth: steps of the running mean; 0 takes one in fifty."""
    panels = [panel for panel in _PANELS if any(panel.value_of(line) is not None for line in _lines(runs))]
    stalls = any(start.commits for run in runs for start in run.starts)
    heights = [_HEIGHTS[panel.key] for panel in panels] + ([_HEIGHTS["stall"]] if stalls else [])
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.9), dpi=_DPI, layout="constrained")
    column = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel in zip(column, panels, strict=False):
        _frame(axes, panel.title)
        for run, colour in zip(runs, _colours(runs), strict=True):
            _draw_run(axes, panel, run, colour, smooth)
        panel.style(axes)
    if stalls:
        _draw_stalls(column[-1], runs)
    _mark(list(column), runs)
    _label(figure, list(column), runs)
    return figure


def smoothed(values: Sequence[float], steps: int) -> np.ndarray:
    """float64, as long as `values`: the mean over `steps` of them around each, over fewer near the ends.

    As many before as after, so that nothing lags; an even number of steps counts as one more.
    """
    sums = np.concatenate(([0.0], np.cumsum(values)))
    at = np.arange(len(values))
    reach = np.minimum(np.minimum(at, at[::-1]), steps // 2)
    return np.asarray((sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1))


def _lines(runs: Sequence[RunLog]) -> list[Line]:
    return [line for run in runs for start in run.starts for line in start.steps]


def _colours(runs: Sequence[RunLog]) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(len(runs))]


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9, color=INK, pad=4)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=INK, labelsize=8, length=0)


def _points(panel: _Panel, lines: Sequence[Line]) -> tuple[list[int], list[float]]:
    pairs = [(line["step"], value) for line in lines if (value := panel.value_of(line)) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _draw_run(axes: Axes, panel: _Panel, run: RunLog, colour: str, smooth: int) -> None:
    """What lasted as a line, what was lost as a pale one; the loss with its single values behind it."""
    for lost in _stretches(run.replaced()):
        steps, values = _points(panel, lost)
        axes.plot(steps, values, color=LOST, linewidth=1.2, linestyle=(0, (2, 1)), zorder=3.5, gid="lost")
    steps, values = _points(panel, run.lasting())
    if not steps:
        return
    window = smooth or max(len(steps) // 50, 1)
    if panel.key == "loss" and window > 1:
        axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3, zorder=3, gid="raw")
    axes.plot(steps, smoothed(values, window), color=colour, linewidth=1.6, zorder=4, gid=run.name)
    if panel.key == "loss":
        _draw_evaluations(axes, run, colour)


def _draw_evaluations(axes: Axes, run: RunLog, colour: str) -> None:
    found = [line for start in run.starts for line in start.evaluations if line.get("eval_loss") is not None]
    if found:
        steps, values = [line["step"] for line in found], [line["eval_loss"] for line in found]
        axes.plot(
            steps, values, "o", color="white", markeredgecolor=colour, markersize=5, zorder=5, gid="eval"
        )


def _draw_stalls(axes: Axes, runs: Sequence[RunLog]) -> None:
    _frame(axes, "training waited for a checkpoint, seconds")
    for run, colour in zip(runs, _colours(runs), strict=True):
        found = [line for start in run.starts for line in start.commits]
        steps = np.array([line["step"] for line in found])
        waits = np.array([line.get("stall_seconds", 0.0) for line in found])
        axes.vlines(steps, 0, waits, color=colour, linewidth=1.2, zorder=3)
        axes.plot(steps, waits, "o", color=colour, markersize=3, zorder=4, gid="stall")
    axes.set_ylim(bottom=0)


def _mark(column: Sequence[Axes], runs: Sequence[RunLog]) -> None:
    """Restarts: a line where training went on, and a pale band over the steps that were made again."""
    for run in runs:
        for before, after in zip(run.starts, run.starts[1:], strict=False):
            reached = before.steps[-1]["step"]
            for axes in column:
                axes.axvline(
                    after.at, color=RESTART, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1, gid="restart"
                )
                if reached > after.at:
                    axes.axvspan(after.at, reached, color=RESTART, alpha=0.06, linewidth=0, zorder=0)


def _label(figure: Figure, column: Sequence[Axes], runs: Sequence[RunLog]) -> None:
    """The legend, in words, above the panels; and the axis of steps below them."""
    column[-1].set_xlabel("step", fontsize=9, color=INK)
    column[-1].xaxis.set_major_locator(MaxNLocator(10, integer=True))
    column[-1].set_xlim(0, 1.01 * max(line["step"] for line in _lines(runs)))
    first = column[0]
    for run, colour in zip(runs, _colours(runs), strict=True):
        restarts, lost = len(run.starts) - 1, run.lost_steps
        told = f"{run.name}" if not restarts else f"{run.name}: {restarts} restarts, {lost} steps made again"
        told = told.replace("1 restarts", "1 restart") if restarts == 1 else told
        first.plot([], [], color=colour, linewidth=1.6, label=told)
    starts = [start for run in runs for start in run.starts]
    if any(start.evaluations for start in starts):
        first.plot([], [], "o", color="white", markeredgecolor=INK, markersize=5, label="held-out loss")
    if any(len(run.starts) > 1 for run in runs):
        first.plot(
            [], [], color=RESTART, linewidth=0.9, linestyle=(0, (4, 3)), label="went on after a restart"
        )
    if any(run.replaced() for run in runs):
        first.plot([], [], color=LOST, linewidth=1.2, linestyle=(0, (2, 1)), label="lost, made again")
    figure.legend(
        *first.get_legend_handles_labels(),
        loc="outside upper left",
        ncols=3,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
    )


def _stretches(lines: Sequence[Line]) -> list[list[Line]]:
    """Cut wherever steps do not follow each other: nothing is drawn across a gap."""
    stretches: list[list[Line]] = []
    for line in lines:
        if stretches and line["step"] == stretches[-1][-1]["step"] + 1:
            stretches[-1].append(line)
        else:
            stretches.append([line])
    return stretches
