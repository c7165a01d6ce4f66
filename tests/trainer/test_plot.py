"""`plot`: what is drawn is what the files say, and a picture of a size comes out."""

import json
import math
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rerail_trainer.__main__ import main
from rerail_trainer.report.drawing import draw, smoothed
from rerail_trainer.report.runs import read_run, read_runs


def write_run(path: Path, starts: list[tuple[int, int]], mfu: bool = True, events: bool = True) -> Path:
    """A run whose processes began after, and died after, these steps; a save at every 10, an evaluation at 20."""
    lines: list[dict[str, Any]] = []
    for number, (at, end) in enumerate(starts):
        lines.append({"event": "start", "step": at})
        if number:
            lines.append({"event": "resume", "step": at})
        for step in range(at + 1, end + 1):
            line = {"step": step, "loss": 2 + 4 / step + 0.01 * number, "tokens_per_second": 1e5 + step}
            lines.append({**line, "mfu": 0.4} if mfu else line)
            if step % 10 == 0:
                lines.append({"event": "commit", "step": step, "stall_seconds": 0.1, "seconds": 2.0})
            if step % 20 == 0:
                lines.append({"event": "eval", "step": step, "eval_loss": 2.5})
    lines.append({"event": "stop", "step": starts[-1][1], "code": 0})
    kept = [line for line in lines if events or "event" not in line]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    return path


def curve(axes: Axes, name: str) -> Line2D:
    (found,) = [line for line in axes.lines if line.get_gid() == name]
    return found


def curves(axes: Axes, name: str) -> list[Line2D]:
    return [line for line in axes.lines if line.get_gid() == name]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left").split(",")[0] for axes in figure.axes]


def test_every_panel_shows_what_the_file_says(tmp_path: Path) -> None:
    figure = draw([read_run(str(write_run(tmp_path / "run.jsonl", [(0, 40)])))], smooth=1)
    assert titles(figure) == ["loss", "tokens per second", "MFU", "training waited for a checkpoint"]
    loss, rate, share, stall = figure.axes
    assert list(curve(loss, "run").get_xdata()) == list(range(1, 41))
    assert list(curve(loss, "run").get_ydata()) == pytest.approx([2 + 4 / step for step in range(1, 41)])
    assert list(curve(rate, "run").get_ydata()) == pytest.approx([1e5 + step for step in range(1, 41)])
    assert list(curve(share, "run").get_ydata()) == pytest.approx([0.4] * 40)
    assert list(curve(stall, "stall").get_xdata()) == [10, 20, 30, 40]
    assert list(curve(loss, "eval").get_xdata()) == [20, 40]
    assert not curves(loss, "restart")
    assert not curves(loss, "lost")


def test_restarts_are_marked_and_steps_made_again_are_drawn_as_lost(tmp_path: Path) -> None:
    run = read_run(str(write_run(tmp_path / "run.jsonl", [(0, 37), (30, 55), (50, 60)])))
    assert run.lost_steps == 12
    figure = draw([run], smooth=1)
    loss = figure.axes[0]
    for axes in figure.axes:
        assert [line.get_xdata()[0] for line in curves(axes, "restart")] == [30, 50]
    lost = curves(loss, "lost")
    assert [list(line.get_xdata()) for line in lost] == [list(range(31, 38)), list(range(51, 56))]
    assert list(lost[0].get_ydata()) == pytest.approx([2 + 4 / step for step in range(31, 38)])
    # The line that lasts shows the later making of these steps.
    lasting = dict(zip(curve(loss, "run").get_xdata(), curve(loss, "run").get_ydata(), strict=True))
    assert sorted(lasting) == list(range(1, 61))
    assert lasting[33] == pytest.approx(2 + 4 / 33 + 0.01)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == [
        "run: 2 restarts, 12 steps made again",
        "held-out loss",
        "went on after a restart",
        "lost, made again",
    ]


def test_runs_have_colours_of_their_own_and_names_that_differ(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    paths = [write_run(tmp_path / one / "steps.jsonl", [(0, 30)], mfu=one == "a") for one in "ab"]
    runs = read_runs([str(path) for path in paths])
    assert [run.name for run in runs] == [str(tmp_path / "a" / "steps"), str(tmp_path / "b" / "steps")]
    figure = draw(runs)
    loss, _, share, _ = figure.axes
    assert len({curve(loss, run.name).get_color() for run in runs}) == 2
    assert len(curves(share, runs[0].name)) == 1
    assert not curves(share, runs[1].name)


def test_a_file_without_events_shows_its_restarts_by_its_steps(tmp_path: Path) -> None:
    run = read_run(str(write_run(tmp_path / "run.jsonl", [(0, 15), (10, 20)], mfu=False, events=False)))
    assert [start.at for start in run.starts] == [0, 10]
    figure = draw([run])
    assert titles(figure) == ["loss", "tokens per second"]
    assert [line.get_xdata()[0] for line in curves(figure.axes[0], "restart")] == [10]


def test_smoothing_is_a_mean_around_each_step_and_lags_nowhere() -> None:
    straight = np.arange(50, dtype=float)
    assert smoothed(straight, 9) == pytest.approx(straight)
    values = [0.0, 0.0, 3.0, 0.0, 0.0]
    assert smoothed(values, 3) == pytest.approx([0, 1, 1, 1, 0])
    assert smoothed(values, 1) == pytest.approx(values)


def test_a_long_run_has_its_single_losses_behind_the_smooth_line(tmp_path: Path) -> None:
    path = str(write_run(tmp_path / "run.jsonl", [(0, 200)]))
    loss = draw([read_run(path)]).axes[0]
    raw, smooth = curve(loss, "raw"), curve(loss, "run")
    assert len(raw.get_ydata()) == len(smooth.get_ydata()) == 200
    assert raw.get_linewidth() < smooth.get_linewidth()
    assert not curves(draw([read_run(path)], smooth=1).axes[0], "raw")


def test_a_png_of_the_right_size_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = write_run(tmp_path / "run.jsonl", [(0, 20), (10, 30)]), tmp_path / "run.png"
    assert main(["plot", str(run), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    content = out.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (1500, math.floor(150 * (3.4 + 1.5 + 1.3 + 1.3 + 0.9)))


def test_an_svg_holds_the_words_of_the_legend(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "baseline.jsonl", [(0, 20), (10, 30)]), tmp_path / "run.svg"
    assert main(["plot", str(run), "--out", str(out), "--smooth", "5"]) == 0
    assert "<svg" in out.read_text()
    assert "baseline: 1 restart, 10 steps made again" in out.read_text()


REFUSED = {
    "a file that is not there": (
        ["/no/run.jsonl", "--out=x.png"],
        "/no/run.jsonl: No such file or directory",
    ),
    "a file without steps": (
        ["{empty}", "--out=x.png"],
        "holds no step; give a file that --metrics.jsonl wrote",
    ),
    "a kind of picture that is none": (["{run}", "--out=x.bmp"], "--out=x.bmp must end in one of .png, .svg"),
    "a folder that is not there": (["{run}", "--out=/no/x.png"], "/no/x.png cannot be written: No such file"),
    "no file to write": (["{run}"], "the following arguments are required: --out"),
    "a negative window": (["{run}", "--out=x.png", "--smooth=-1"], "--smooth=-1 must not be negative"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, message = REFUSED[case]
    (tmp_path / "empty").write_text('{"event": "start", "step": 0}\nno JSON at all\n')
    names = {"run": write_run(tmp_path / "run.jsonl", [(0, 3)]), "empty": tmp_path / "empty"}
    assert main(["plot", *(word.format(**names) for word in words)]) == 64
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "rerail_trainer.report.drawing")
    run = write_run(tmp_path / "run.jsonl", [(0, 3)])
    assert main(["plot", str(run), "--out", str(tmp_path / "x.png")]) == 64
    assert "plot needs matplotlib: pip install matplotlib" in capsys.readouterr().err


def test_ctrl_c_while_a_command_works_is_one_word_and_exit_code_130(tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    os.mkfifo(run)
    words = [sys.executable, "-m", "rerail_trainer", "plot", str(run), "--out", str(tmp_path / "run.png")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        with run.open("w"):  # opens as soon as the command reads
            command.send_signal(signal.SIGINT)
            out, error = command.communicate(timeout=60)
    assert (command.returncode, out, error) == (130, b"", b"rerail_trainer: interrupted\n")
