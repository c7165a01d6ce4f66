"""python -m bench.trainer.data: how fast one core makes training batches of prepared shards.

Seconds are CPU seconds of the one thread that does the work, so another tenant of the machine counts for
little. Each case is measured in turn with the plain way to do it, row by row over numpy.memmap, and the ratio
is of medians. Shards lie in the page cache: what is measured is the work, not the disk.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bench.report import keep, tell
from rerail_trainer.config import BatchConfig, Config, DataConfig, ModelConfig
from rerail_trainer.data.feed import Feed, Share
from rerail_trainer.data.manifest import CorpusManifest, Shard, Split, TokenizerRecord
from rerail_trainer.data.order import window_of
from rerail_trainer.data.shards import HEADER_BYTES, header
from rerail_trainer.data.source import open_source

GOAL_TOKENS_PER_SECOND = 20e6
STEP_TOKENS = 524_288
VOCAB = 50_257
END = VOCAB - 1
DOCUMENT_TOKENS = 700


@dataclass(frozen=True)
class Case:
    """One way to read."""

    seq_len: int
    corpora: int = 1
    document_mask: bool = False
    wide: bool = False

    def __str__(self) -> str:
        words = [f"{self.seq_len} tokens a row", "uint32" if self.wide else "uint16"]
        words += [f"{self.corpora} corpora mixed"] * (self.corpora > 1) + [
            "document masks"
        ] * self.document_mask
        return ", ".join(words)


CASES = (
    *(Case(seq_len) for seq_len in (64, 1024, 2048, 4096)),
    Case(2048, wide=True),
    Case(2048, corpora=3),
    Case(2048, document_mask=True),
)


def make_corpus(folder: Path, tokens: int, wide: bool, seed: int) -> Path:
    """A prepared folder of random tokens, in shards of a tenth."""
    folder.mkdir(parents=True)
    dtype = np.dtype("<u4") if wide else np.dtype("<u2")
    random = np.random.default_rng(seed)
    shards = []
    for index in range(10):
        part = random.integers(0, END, tokens // 10, dtype=dtype)
        part[random.integers(0, DOCUMENT_TOKENS) :: DOCUMENT_TOKENS] = END
        name = f"train-{index:05d}.bin"
        (folder / name).write_bytes(header(len(part), dtype) + part.tobytes())
        shards.append(Shard(name, len(part), "not digested: made for a bench"))
    record = TokenizerRecord("bytes", "bench", VOCAB, END, "<|endoftext|>")
    manifest = CorpusManifest(record, Split(tuple(shards), tokens, 1, tokens), Split(), {"seed": seed})
    (folder / "corpus.json").write_bytes(manifest.encode())
    return folder


def config_of(case: Case, folders: list[Path]) -> Config:
    """The whole step of 524,288 tokens on one rank."""
    paths = folders[: case.corpora]
    path = ",".join(f"{path}=1" for path in paths) if case.corpora > 1 else str(paths[0])
    return replace(
        Config(),
        model=ModelConfig(seq_len=case.seq_len, vocab=VOCAB),
        data=DataConfig(source="shards", path=path, document_mask=case.document_mask),
        batch=BatchConfig(tokens_per_step=STEP_TOKENS, micro_batch=8),
    )


def plain_way(case: Case, folder: Path, seed: int) -> Callable[[int], torch.Tensor]:
    """Row by row: slice a numpy.memmap, widen to int64, stack."""
    dtype = np.dtype("<u4") if case.wide else np.dtype("<u2")
    files = sorted(folder.glob("*.bin"))
    parts = [np.memmap(file, dtype=dtype, mode="r", offset=HEADER_BYTES) for file in files]
    starts = np.cumsum([0, *(len(part) for part in parts)])
    windows, rows = (int(starts[-1]) - 1) // case.seq_len, STEP_TOKENS // case.seq_len

    def row(window: int) -> np.ndarray:
        begin = window * case.seq_len
        index = int(np.searchsorted(starts, begin, side="right")) - 1
        whole = np.empty(case.seq_len + 1, dtype=np.int64)
        filled = 0
        while filled < len(whole):
            at = begin + filled - int(starts[index])
            piece = parts[index][at : at + len(whole) - filled]
            whole[filled : filled + len(piece)] = piece
            filled, index = filled + len(piece), index + 1
        return whole

    def batch(step: int) -> torch.Tensor:
        samples = np.arange(step * rows, (step + 1) * rows, dtype=np.int64)
        chosen = window_of(samples, windows, seed)
        return torch.from_numpy(np.stack([row(int(window)) for window in chosen]))

    return batch


def seconds_of(work: Callable[[int], object], step: int) -> float:
    """CPU seconds of this thread."""
    began = time.thread_time()
    work(step)
    return time.thread_time() - began


def measure(case: Case, folders: list[Path], steps: int) -> dict[str, object]:
    """Medians over `steps` steps of both ways, in turn."""
    config = config_of(case, folders)
    rows = STEP_TOKENS // case.seq_len
    feed = Feed(config, open_source(config), Share(0, 8, rows // 8), torch.device("cpu"))
    plain = plain_way(case, folders[0], config.run.seed)
    if case == Case(case.seq_len, wide=case.wide):
        assert torch.equal(feed.batch(3).tokens, plain(3)), "both ways must give the same tokens"
    ours, theirs = [], []
    for step in range(steps + 2):
        ours.append(seconds_of(feed.batch, step))
        theirs.append(seconds_of(plain, step))
    rate, before = STEP_TOKENS / median(ours[2:]), STEP_TOKENS / median(theirs[2:])
    verdict = "" if rate >= GOAL_TOKENS_PER_SECOND else "  BELOW THE GOAL"
    tell(
        f"{case!s:<52} {rate / 1e6:7.1f} M tokens/s  row by row {before / 1e6:6.1f}"
        f"  x{rate / before:.1f}{verdict}"
    )
    return {"case": str(case), "tokens_per_second": round(rate), "row_by_row": round(before)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.trainer.data", description=__doc__)
    parser.add_argument("--tokens", type=int, default=50_000_000, help="per corpus (default 50 million)")
    parser.add_argument("--steps", type=int, default=20, help="steps of 524,288 tokens per case (default 20)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        narrow = [make_corpus(Path(name, f"n{i}"), arguments.tokens, False, i) for i in range(3)]
        wide = [make_corpus(Path(name, "wide"), arguments.tokens, True, 9)]
        results = [measure(case, wide if case.wide else narrow, arguments.steps) for case in CASES]
    command = f"python -m bench.trainer.data --tokens {arguments.tokens} --steps {arguments.steps}"
    tell(f"kept in {keep('trainer-data', command, results)}")
    return 0 if all(r["tokens_per_second"] >= GOAL_TOKENS_PER_SECOND for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
