"""Numbers of a run, in Prometheus text; served by rank 0 where a port is set. Standard library only."""

import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rerail_trainer.failures import BadConfig

PREFIX = "rerail_trainer_"

DESCRIPTIONS = {
    "step": ("gauge", "Optimizer steps finished."),
    "tokens_total": ("counter", "Tokens trained on since step 0."),
    "loss": ("gauge", "Mean loss of the last step over all ranks, in nats per token."),
    "eval_loss": ("gauge", "Held-out loss, in nats per token, at the last evaluation."),
    "eval_bits_per_byte": ("gauge", "Held-out loss in bits per byte of text, at the last evaluation."),
    "grad_norm": ("gauge", "Global gradient norm of the last step, before clipping."),
    "lr": ("gauge", "Learning rate of the last step."),
    "tokens_per_second": ("gauge", "Tokens of all ranks per second, over the last steps."),
    "step_seconds": ("histogram", "Seconds of single steps made by this process."),
    "mfu_ratio": ("gauge", "Model FLOP per second over the stated bf16 peak of all devices."),
    "matmul_peak_ratio": ("gauge", "The same over the matmul peak that was measured at the start."),
    "data_wait_seconds_total": ("counter", "Seconds in which steps waited for their data."),
    "memory_peak_bytes": ("gauge", "Most memory that rank 0 had: tensors on a GPU, the process on a CPU."),
    "checkpoint_stall_seconds": ("gauge", "Seconds in which training waited for the last committed save."),
    "checkpoint_stall_seconds_total": ("counter", "Seconds in which training waited for saves."),
    "checkpoint_save_seconds": ("gauge", "Seconds from the start to the commit of the last save."),
    "checkpoint_bytes": ("gauge", "Bytes of the last committed checkpoint."),
    "checkpoint_last_committed_step": ("gauge", "Newest committed step."),
    "checkpoint_last_commit_timestamp_seconds": ("gauge", "Unix time of the newest commit."),
    "checkpoint_failures_total": ("counter", "Saves that failed, and writers lost between saves."),
    "checkpoint_skipped_total": ("counter", "Saves left out because the one before was still under way."),
    "checkpoint_load_seconds": ("gauge", "Seconds from choosing a step to having read it, at the start."),
    "checkpoint_read_bytes": ("gauge", "Bytes that all ranks together read of that step."),
    "checkpoint_damaged_total": ("counter", "Steps found damaged at load and set aside."),
    "resume_step": ("gauge", "Step that this process resumed from."),
    "restarts_total": ("counter", "Starts of this job before this one."),
    "lost_steps_total": ("counter", "Steps that this process made again, by the lines in metrics.jsonl."),
    "productive_seconds_total": ("counter", "Seconds of steps that no earlier start had made."),
    "moe_load_max_over_mean": ("gauge", "Tokens of a layer's fullest expert over the mean, last step."),
    "moe_tokens_dropped_total": ("counter", "Always 0: experts take every token that is sent to them."),
    "nonfinite_total": ("counter", "Steps whose loss or gradient was not finite."),
    "phase_seconds": ("gauge", "Seconds from process start to the end of a start-up phase."),
    "build_info": ("gauge", "Always 1; versions are labels."),
}


BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds, in seconds, of every histogram."""


def labelled(**labels: str) -> str:
    """Labels as Prometheus writes them: key="value",... with what needs it escaped."""
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return ",".join(f'{name}="{value.translate(escapes)}"' for name, value in labels.items())


@dataclass
class Histogram:
    """Counts of values up to each bound, each value in one of them; the last is for all above."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    sum: float = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(BUCKETS, value)] += 1
        self.sum += value

    def lines(self, name: str) -> list[str]:
        total, lines = 0, []
        for bound, count in zip([*map(str, BUCKETS), "+Inf"], self.counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self.sum:.17g}", f"{name}_count {total}"]


@dataclass
class Metrics:
    """The current values; safe to read from another thread."""

    values: dict[tuple[str, str], float] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def set(self, name: str, value: float, labels: str = "") -> None:
        """`labels` as `labelled` gives them."""
        with self.lock:
            self.values[name, labels] = value

    def add(self, name: str, value: float, labels: str = "") -> None:
        with self.lock:
            self.values[name, labels] = self.values.get((name, labels), 0.0) + value

    def observe(self, name: str, value: float) -> None:
        """Counts `value` into the histogram `name`."""
        with self.lock:
            self.histograms.setdefault(name, Histogram()).add(value)

    def text(self) -> str:
        """Prometheus text format, version 0.0.4."""
        lines = []
        with self.lock:
            values = sorted(self.values.items())
            for name, (kind, description) in DESCRIPTIONS.items():
                full = f"{PREFIX}{name}"
                samples = [
                    f"{full}{'{' + labels + '}' if labels else ''} {value:.17g}"
                    for (known, labels), value in values
                    if known == name
                ]
                if name in self.histograms:
                    samples = self.histograms[name].lines(full)
                if samples:
                    lines += [f"# HELP {full} {description}", f"# TYPE {full} {kind}", *samples]
        return "\n".join(lines) + "\n"


def serve(metrics: Metrics, port: int) -> ThreadingHTTPServer:
    """Serves /metrics on all addresses until the process ends. BadConfig when the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.split("?")[0] == "/metrics"
            body = metrics.text().encode() if found else b"only /metrics is here\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes are no news."""

    try:
        server = ThreadingHTTPServer(("", port), Handler)
    except OSError as error:
        raise BadConfig(f"metrics.port={port} cannot be used: {error.strerror}") from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
