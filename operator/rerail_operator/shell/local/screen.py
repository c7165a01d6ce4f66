"""Shows a run while it runs: a live panel on a terminal, one line per change elsewhere."""

from typing import Protocol

from rich import box
from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rerail_api.v1alpha1 import Phase
from rerail_operator.shell.console import Console
from rerail_operator.shell.local.view import View

FRAMES_PER_SECOND = 4
STEP_LINE_SECONDS = 2.0
COLOURS = {
    Phase.RUNNING: "green",
    Phase.COMPLETE: "green",
    Phase.FAILED: "red",
    Phase.RESTARTING: "yellow",
}


class Screen(Protocol):
    """Whatever shows a `View`."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def refresh(self, now: float) -> None:
        """The view may have changed; `now` is monotonic."""
        ...

    def tell(self, text: str) -> None:
        """Something that happened once and must stay readable."""
        ...


def screen_for(console: Console, view: View) -> Screen:
    """The live panel where a person watches, lines elsewhere."""
    return LiveScreen(console, view) if console.is_terminal else LineScreen(console, view)


class LineScreen:
    """For logs and pipes: a line per phase, reason, incident, slow rank, and per some seconds of steps."""

    def __init__(self, console: Console, view: View) -> None:
        self._console = console
        self._view = view
        self._changes = Changes(view)
        self._step: int | None = None
        self._step_at = float("-inf")

    def start(self) -> None:
        """Nothing to prepare."""

    def stop(self) -> None:
        self._step_at = float("-inf")
        self._show_step(0.0)

    def tell(self, text: str) -> None:
        self._console.say(text)

    def refresh(self, now: float) -> None:
        for line in self._changes.lines():
            self._console.say(line)
        self._show_step(now)

    def _show_step(self, now: float) -> None:
        view = self._view
        if view.step is None or view.step == self._step or now - self._step_at < STEP_LINE_SECONDS:
            return
        self._step, self._step_at = view.step, now
        self._console.say("  " + ", ".join(figures(view)))


class LiveScreen:
    """A panel that is redrawn in place; what happened once scrolls away above it."""

    def __init__(self, console: Console, view: View) -> None:
        self._view = view
        self._changes = Changes(view)
        self._live = Live(
            console=RichConsole(file=console.out, highlight=False),
            get_renderable=self.render,
            refresh_per_second=FRAMES_PER_SECOND,
            transient=True,
        )

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def tell(self, text: str) -> None:
        self._live.console.print(Text(text))

    def refresh(self, now: float) -> None:
        """The panel reads the view by itself, some times a second; changes stay readable above it."""
        for line in self._changes.lines():
            self.tell(line)

    def render(self) -> RenderableType:
        """The whole panel as it is now."""
        view = self._view
        meta = view.job.metadata
        title = Text(f" {meta.namespace}/{meta.name} ", style="bold")
        parts: list[RenderableType] = [self._figures(), self._bar()]
        if view.tail:
            lines = [Text(line, style="dim", overflow="ellipsis", no_wrap=True) for line in view.tail]
            parts += [Text(""), *lines]
        return Panel(Group(*parts), title=title, title_align="left", box=box.ROUNDED)

    def _figures(self) -> Table:
        status = self._view.job.status
        grid = Table.grid(padding=(0, 2))
        style = COLOURS.get(status.phase, "cyan") if status.phase else "cyan"
        phase = Text(f"{status.phase or 'Starting'}", style=f"bold {style}")
        grid.add_row(phase, Text(status.reason), Text(f"round {status.round}"), Text(restarts(self._view)))
        grid.add_row(*(Text(figure) for figure in figures(self._view)))
        return grid

    def _bar(self) -> RenderableType:
        view = self._view
        if view.step is None or not view.total_steps:
            return ProgressBar(total=None, pulse=True, width=48)
        row = Table.grid(padding=(0, 2))
        row.add_row(ProgressBar(total=view.total_steps, completed=view.step, width=48), Text(eta(view)))
        return row


class Changes:
    """Tells each change of phase, reason or round once, and who became slow or is so no more."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._told: tuple[str, ...] = ()
        self._slow: frozenset[int] = frozenset()

    def lines(self) -> list[str]:
        """What has changed since the last call."""
        return [*self._state(), *self._stragglers()]

    def _state(self) -> list[str]:
        status = self._view.job.status
        state = (str(status.phase or ""), status.reason, str(status.round))
        if state == self._told or not status.phase:
            return []
        self._told = state
        return [f"{status.phase}: {status.reason}, round {status.round}. {status.message}".rstrip(". ")]

    def _stragglers(self) -> list[str]:
        slow = {one.rank: one for one in self._view.job.status.stragglers}
        before, self._slow = self._slow, frozenset(slow)
        came = [
            f"  rank {one.rank} on {one.node} is slow: {one.ratio:.2f} times the gang's median"
            for one in slow.values()
            if one.rank not in before
        ]
        return came + [f"  rank {rank} is slow no more" for rank in sorted(before - self._slow)]


def figures(view: View) -> list[str]:
    """Step, loss, speed and checkpoint, as far as they are known."""
    if view.step is None:
        return ["no step yet"]
    total = f"/{view.total_steps}" if view.total_steps else ""
    parts = [f"step {view.step}{total}"]
    if view.loss is not None:
        parts.append(f"loss {view.loss:.4f}")
    if view.tokens_per_second:
        parts.append(f"{view.tokens_per_second:,.0f} tokens/s")
    checkpoint = view.progress.checkpoint_step
    if checkpoint is not None:
        parts.append(f"checkpoint {checkpoint}")
    return parts


def restarts(view: View) -> str:
    count = view.job.status.restarts.total
    return f"{count} restart{'' if count == 1 else 's'}"


def eta(view: View) -> str:
    """Time left in words."""
    left = view.seconds_left()
    if left is None:
        return ""
    minutes, seconds = divmod(round(left), 60)
    return f"{minutes}:{seconds:02d} left"
