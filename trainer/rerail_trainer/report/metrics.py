"""Numbers of a run, in Prometheus text; served by rank 0 where a port is set. Standard library only."""

import threading
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
    "step_seconds_sum": ("counter", "Seconds spent in steps by this process."),
    "step_seconds_count": ("counter", "Steps made by this process."),
    "checkpoint_stall_seconds": ("gauge", "Seconds in which training waited for the last committed save."),
    "checkpoint_stall_seconds_total": ("counter", "Seconds in which training waited for saves."),
    "checkpoint_save_seconds": ("gauge", "Seconds from the start to the commit of the last save."),
    "checkpoint_bytes": ("gauge", "Bytes of the last committed checkpoint."),
    "checkpoint_last_committed_step": ("gauge", "Newest committed step."),
    "checkpoint_last_commit_timestamp_seconds": ("gauge", "Unix time of the newest commit."),
    "checkpoint_failures_total": ("counter", "Saves that failed, and writers lost between saves."),
    "checkpoint_skipped_total": ("counter", "Saves left out because the one before was still under way."),
    "checkpoint_damaged_total": ("counter", "Steps found damaged at load and set aside."),
    "resume_step": ("gauge", "Step that this process resumed from."),
    "nonfinite_total": ("counter", "Steps whose loss or gradient was not finite."),
    "phase_seconds": ("gauge", "Seconds from process start to the end of a start-up phase."),
    "build_info": ("gauge", "Always 1; versions are labels."),
}


@dataclass
class Metrics:
    """The current values; safe to read from another thread."""

    values: dict[tuple[str, str], float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def set(self, name: str, value: float, labels: str = "") -> None:
        """`labels` as Prometheus writes them: key="value",..."""
        with self.lock:
            self.values[name, labels] = value

    def add(self, name: str, value: float, labels: str = "") -> None:
        with self.lock:
            self.values[name, labels] = self.values.get((name, labels), 0.0) + value

    def text(self) -> str:
        """Prometheus text format, version 0.0.4."""
        with self.lock:
            values = sorted(self.values.items())
        lines = []
        for name, (kind, description) in DESCRIPTIONS.items():
            samples = [(labels, value) for (known, labels), value in values if known == name]
            if samples:
                lines += [f"# HELP {PREFIX}{name} {description}", f"# TYPE {PREFIX}{name} {kind}"]
                lines += [
                    f"{PREFIX}{name}{'{' + labels + '}' if labels else ''} {value:.17g}"
                    for labels, value in samples
                ]
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
