"""Raw text in, a model out: prepare, train, evaluate, export and sample, as one job.

Every rank runs this script. Rank 0 prepares the corpus, and all ranks wait for it; then all train; then
rank 0 evaluates, exports and samples. Started again after a failure, it finds what is done and goes on:
`prepare` takes up its finished parts, `train` its newest checkpoint.

Everything lies below RERAIL_CHECKPOINT_DIR, which all pods share. TEXT names a folder of .txt files; without
it the text is the language reference that every Python carries.
"""

import importlib.util
import os
import pathlib
import sys
import time

from rerail_trainer.__main__ import leave, main

SHARED = pathlib.Path(os.environ.get("RERAIL_CHECKPOINT_DIR", "checkpoints"))
TEXT, CORPUS, STEPS, MODEL = (SHARED / name for name in ("text", "corpus", "steps", "model"))
RANK = int(os.environ.get("RANK", 0))
PATIENCE_SECONDS = 600
PROMPT = "The import statement"


def language_reference(folder: pathlib.Path) -> pathlib.Path:
    """One file per topic, written once: `prepare` takes files that changed for another corpus."""
    from pydoc_data.topics import topics

    if not folder.exists():
        unfinished = folder.with_name("text.unfinished")
        unfinished.mkdir(parents=True, exist_ok=True)
        for name in sorted(topics):
            (unfinished / f"{name}.txt").write_text(topics[name], encoding="utf-8")
        unfinished.rename(folder)
    return folder


def prepare() -> int:
    """Text to shards, by rank 0; the others wait until the corpus is whole."""
    if RANK == 0:
        text = os.environ.get("TEXT") or language_reference(TEXT)
        return main(["prepare", str(text), "--out", str(CORPUS), "--held-out=0.05"])
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (CORPUS / "corpus.json").exists():
        if time.monotonic() > deadline:
            sys.stderr.write(f"no corpus in {CORPUS} after {PATIENCE_SECONDS} s\n")
            return 1
        time.sleep(0.2)
    return 0


def train(words: list[str]) -> int:
    """All ranks together; `words` are settings of the trainer, such as --train.steps=200."""
    data = ["--data.source=shards", f"--data.path={CORPUS}"]
    jsonl = f"--metrics.jsonl={SHARED}/steps.jsonl"
    return main(["train", "--preset=tiny", *data, f"--checkpoint.dir={STEPS}", jsonl, *words])


def finish() -> int:
    """What becomes of the trained model: by rank 0, as one process without the others."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    commands = [
        ["eval", str(STEPS), "--held-out", str(CORPUS)],
        ["export", str(STEPS), "--out", str(MODEL)],
        ["sample", str(MODEL), "--prompt", PROMPT, "--max-tokens", "80", "--temperature", "0.7"],
    ]
    return next((code for code in map(main, commands) if code), 0)


def run(words: list[str]) -> int:
    """The exit code of the first step that did not end well, which the operator then judges."""
    if importlib.util.find_spec("tokenizers") is None:  # before hours of training, not after them
        sys.stderr.write("the exported model's tokenizer.json needs a package: pip install tokenizers\n")
        return 64
    code = prepare() or train(words)
    if code == 0 and RANK == 0:
        code = finish()
    return code


if __name__ == "__main__":
    leave(run(sys.argv[1:]))
