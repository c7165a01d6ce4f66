"""What a real run tells: metrics by HTTP, JSON lines, TensorBoard, Weights & Biases; and that none can stop it."""

import json
import math
import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from rerail_trainer.config import Config, MetricsConfig
from rerail_trainer.report import sinks
from rerail_trainer.report.jsonl import JsonLines, highest_step
from rerail_trainer.report.metrics import BUCKETS, DESCRIPTIONS, PREFIX, Metrics, labelled
from rerail_trainer.report.pace import Pace
from rerail_trainer.report.sinks import open_sinks

from .gang import Gang, Yard, Zygote, free_port

MIXED = ("--model.experts=4", "--model.expert_ffn=24", "--model.dense_layers=1")


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return reply.read().decode()  # type: ignore[no-any-return]


def families(text: str) -> dict[str, Metric]:
    """By full name, as Prometheus reads them; a counter keeps its _total."""
    found = list(text_string_to_metric_families(text))
    return {f"{one.name}_total" if one.type == "counter" else one.name: one for one in found}


def value(found: dict[str, Metric], name: str, **labels: str) -> float:
    samples = [one for one in found[PREFIX + name].samples if one.labels == labels]
    assert len(samples) == 1, (name, labels, found[PREFIX + name].samples)
    return float(samples[0].value)


@pytest.fixture(scope="module")
def running(
    zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gang, dict[str, Metric], str]]:
    """A run of a mixture of experts that resumed from step 2, scraped once it has saved and stepped on."""
    yard = Yard(zygote, tmp_path_factory.mktemp("scraped"))
    first = yard.run(*MIXED, "--train.steps=2", "--optim.horizon_steps=5000")
    shutil.copy(first.folder / "steps.jsonl", yard.folder / "run.jsonl")
    port = free_port()
    gang = yard.start(
        *MIXED, "--train.steps=5000", f"--metrics.port={port}", "--metrics.peak_tflops=0.01",
        "--checkpoint.every_steps=4", f"--metrics.jsonl={yard.folder}/run.jsonl",
        env={"RERAIL_JOB": "ns/job", "RERAIL_JOB_UID": "local", "RERAIL_ROUND": "3"},
    )  # fmt: skip
    gang.until_step(4)
    seen: list[str] = []

    def told() -> bool:
        seen.append(scraped(port))
        return "checkpoint_last_committed_step" in seen[-1] and "data_wait" in seen[-1]

    gang.until(told)
    yield gang, families(seen[-1]), seen[-1]
    yard.close()


def test_every_name_is_there_with_its_type_and_a_plausible_value(
    running: tuple[Gang, dict[str, Metric], str],
) -> None:
    _, found, text = running
    absent = {
        name.removeprefix(PREFIX) for name in (PREFIX + name for name in DESCRIPTIONS) if name not in found
    }
    # What only a GPU, an evaluation or a failure can give.
    assert absent <= {
        "matmul_peak_ratio", "eval_loss", "eval_bits_per_byte", "checkpoint_failures_total",
        "checkpoint_skipped_total",
    }  # fmt: skip
    for name, family in found.items():
        kind, description = DESCRIPTIONS[name.removeprefix(PREFIX)]
        assert (family.type, family.documentation) == (kind, description)
        assert f"# TYPE {name} {kind}\n" in text
    step = value(found, "step")
    assert step >= 4
    assert value(found, "tokens_total") == 256 * step
    assert 0 < value(found, "loss") < 10
    assert value(found, "grad_norm") > 0
    assert value(found, "lr") == pytest.approx(5e-3, rel=0.01)
    assert 0 < value(found, "mfu_ratio") < 1000
    assert value(found, "memory_peak_bytes") > 50e6
    assert 0 <= value(found, "data_wait_seconds_total") < 60
    assert value(found, "checkpoint_last_committed_step") % 4 == 0
    assert value(found, "checkpoint_bytes") > 10_000
    assert value(found, "resume_step") == 2
    assert value(found, "restarts_total") == 2
    assert value(found, "nonfinite_total") == value(found, "lost_steps_total") == 0
    assert value(found, "moe_tokens_dropped_total") == 0
    assert 1 <= value(found, "moe_load_max_over_mean", layer="1") <= 4
    phases = [value(found, "phase_seconds", phase=name) for name in ("imported", "met", "compiled", "loaded")]
    assert phases == sorted(phases)
    assert phases[0] > 0
    assert phases[-1] <= value(found, "phase_seconds", phase="first_step") < 120
    (build,) = found[PREFIX + "build_info"].samples
    assert set(build.labels) == {"torch", "layout", "config_hash"}
    assert build.labels["layout"] == "1 rank"


def test_the_histogram_of_steps_adds_up(running: tuple[Gang, dict[str, Metric], str]) -> None:
    _, found, _ = running
    samples = found[PREFIX + "step_seconds"].samples
    buckets = [one for one in samples if one.name.endswith("_bucket")]
    assert [float(one.labels["le"]) for one in buckets] == [*BUCKETS, math.inf]
    counts = [one.value for one in buckets]
    assert counts == sorted(counts)
    made = value(found, "step") - 2
    assert {one.name[len(PREFIX) :]: one.value for one in samples}["step_seconds_count"] == counts[-1] == made
    total = {one.name: one.value for one in samples}[PREFIX + "step_seconds_sum"]
    assert total == pytest.approx(value(found, "productive_seconds_total"))
    assert 0 < total < 120


def test_mfu_is_flop_per_token_times_tokens_per_second_over_the_peak(yard: Yard) -> None:
    gang = yard.run("--metrics.peak_tflops=0.02", "--metrics.every=2", ranks=2)
    lines = [line for line in jsonl(gang.folder / "steps.jsonl") if "event" not in line]
    start = next(line for line in jsonl(gang.folder / "steps.jsonl") if line.get("event") == "start")
    assert start["world_size"] == 2
    for line in lines:
        expected = start["flops_per_token"] * line["tokens_per_second"] / (2 * 0.02e12)
        assert line["mfu"] == pytest.approx(expected, abs=1e-3)
    told = [line for line in gang.progress() if line["phase"] == "train" and "mfu" in line]
    assert told[-1]["mfu"] == lines[-1]["mfu"]
    assert re.search(r"step 8/8 .* mfu \d+\.\d %", gang.output())


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_events_tell_of_start_resumption_lost_steps_commits_and_the_end(yard: Yard) -> None:
    path = yard.folder / "run.jsonl"
    crash = {"rank": 0, "point": "due", "step": 6, "signal": "SIGKILL"}
    where = f"--metrics.jsonl={path}"
    first = yard.start(
        where, "--checkpoint.every_steps=3", "--train.steps=9", "--checkpoint.mode=sync", at=crash
    )
    assert first.end_of(0) == -9
    assert jsonl(path)[-1]["step"] == 6
    yard.run(where, "--checkpoint.every_steps=3", "--train.steps=9", "--checkpoint.mode=sync")
    lines = jsonl(path)
    events = [line for line in lines if "event" in line]
    starts = [line for line in events if line["event"] == "start"]
    assert [line["step"] for line in starts] == [0, 3]
    (resume,) = [line for line in events if line["event"] == "resume"]
    assert (resume["step"], resume["lost_steps"]) == (3, 3)
    assert [line["step"] for line in events if line["event"] == "commit"] == [3, 6, 9]
    assert all(line["stall_seconds"] >= 0 for line in events if line["event"] == "commit")
    (stop,) = [line for line in events if line["event"] == "stop"]
    assert (stop["step"], stop["code"], stop["reason"]) == (9, 0, "done")
    steps = [line["step"] for line in lines if "event" not in line]
    assert steps == [1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9]
    assert all(line["time"] > 0 for line in lines)


def test_the_end_of_a_run_that_fails_is_told_with_its_code(yard: Yard) -> None:
    gang = yard.start("--optim.lr=1e38", "--optim.warmup_steps=0", "--optim.clip=0")
    assert gang.wait() == [82]
    last = jsonl(gang.folder / "steps.jsonl")[-1]
    assert (last["event"], last["code"]) == ("stop", 82)
    assert "not finite" in last["reason"]


def test_tensorboards_own_reader_finds_every_step_and_forgets_what_was_lost(yard: Yard) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = yard.folder / "board"
    crash = {"rank": 0, "point": "due", "step": 6, "signal": "SIGKILL"}
    words = (
        f"--metrics.tensorboard={folder}",
        "--checkpoint.every_steps=3",
        "--train.steps=9",
        "--checkpoint.mode=sync",
    )
    assert yard.start(*words, at=crash).end_of(0) == -9
    last = yard.run(*words)
    found = EventAccumulator(str(folder)).Reload()
    losses = {event.step: event.value for event in found.Scalars("train/loss")}
    for step, loss in last.losses().items():
        assert losses[step] == pytest.approx(loss)
    assert [event.step for event in found.Scalars("train/loss")][-6:] == [4, 5, 6, 7, 8, 9]
    assert {"train/grad_norm", "speed/tokens_per_second", "checkpoint/stall_seconds"} <= set(
        found.Tags()["scalars"]
    )


def test_weights_and_biases_writes_an_offline_run(yard: Yard) -> None:
    env = {"WANDB_MODE": "offline", "WANDB_DIR": str(yard.folder), "RERAIL_JOB_UID": ""}
    yard.run("--metrics.wandb=rails", env=env)
    (run,) = (yard.folder / "wandb").glob("offline-run-*")
    (record,) = run.glob("run-*.wandb")
    content = record.read_bytes()
    assert b"rails" in content
    assert b"grad_norm" in content


class Broken:
    """A sink whose service is gone."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def step(self, values: Any) -> None:
        self.calls.append("step")
        raise ConnectionError("the service is gone\nand says much about it")

    def event(self, name: str, values: Any) -> None:
        self.calls.append(name)

    def close(self) -> None:
        self.calls.append("close")


def test_a_sink_that_fails_says_so_once_and_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    careful = sinks.Careful("metrics.wandb=p", lambda: Broken(calls))
    careful.event("start", {})
    for _ in range(3):
        careful.step({"step": 1})
    careful.close()
    assert calls == ["start", "step"]
    assert capsys.readouterr().err == (
        "metrics.wandb=p gets no more figures: the service is gone; training goes on\n"
    )


def test_a_disk_that_fills_up_does_not_stop_training(yard: Yard) -> None:
    gang = yard.run("--metrics.jsonl=/dev/full")
    assert "metrics.jsonl=/dev/full gets no more figures" in gang.output()
    assert "done: 8 steps" in gang.output()


def test_a_folder_that_tensorboard_cannot_have_does_not_stop_training(yard: Yard) -> None:
    gang = yard.run("--metrics.tensorboard=/proc/none")
    assert "metrics.tensorboard=/proc/none gets no more figures" in gang.output()


def test_a_jsonl_that_can_never_be_written_is_refused_at_the_start(yard: Yard) -> None:
    gang = yard.start("--metrics.jsonl=/no/such/folder/x.jsonl")
    assert gang.wait() == [64]
    assert (
        "metrics.jsonl=/no/such/folder/x.jsonl cannot be written: No such file or directory" in gang.output()
    )


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    monkeypatch.delitem(__import__("sys").modules, f"rerail_trainer.report.{name}_sink", raising=False)
    for known in [known for known in __import__("sys").modules if known.startswith(f"{module}.")]:
        monkeypatch.delitem(__import__("sys").modules, known)
    config = Config(metrics=MetricsConfig(**{name: str(tmp_path)}))
    with pytest.raises(sinks.BadConfig, match=rf"metrics\.{name} needs {module}: pip install {module}"):
        open_sinks(config)


def test_a_line_that_a_kill_cut_short_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"step": 7, "loss": 2.0}\n{"step": 8, "lo')
    log = JsonLines(str(path))
    log.step({"step": 8, "loss": math.nan})
    log.close()
    assert path.read_text().splitlines()[1] == '{"step": 8, "lo'
    assert json.loads(path.read_text().splitlines()[2])["loss"] is None
    assert highest_step(str(path)) == 8
    assert highest_step(str(tmp_path / "none")) is None


def test_labels_are_escaped_as_prometheus_reads_them() -> None:
    metrics, odd = Metrics(), 'a "quoted" \\ word\nand a line'
    metrics.set("build_info", 1, labelled(torch=odd))
    (family,) = text_string_to_metric_families(metrics.text())
    assert family.samples[0].labels == {"torch": odd}


def test_pauses_count_for_no_step() -> None:
    times = iter([0.0, 1.0, 2.0, 50.0, 51.0])
    pace = Pace(lambda: next(times))
    pace.begin(0)
    assert [pace.tick(10), pace.tick(20)] == [1.0, 1.0]
    pace.resume()
    assert pace.tokens_per_second == 0.0
    assert pace.tick(30) == 1.0
    assert pace.tokens_per_second == 10.0
