"""`export`: a checkpoint as a model directory of the Hugging Face layout. Torch-free until it begins."""

import re
import sys
from collections.abc import Sequence

from rerail_trainer.commands import Words
from rerail_trainer.failures import BadConfig

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def main(words: Sequence[str]) -> int:
    """Runs the command; 0, or a TrainerExit that says what is wrong."""
    parser = Words("export", "Write a checkpoint as a model directory of the Hugging Face layout.")
    parser.add_argument("checkpoint", help="checkpoint folder, step folder, or model directory")
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder, or one left half-written")
    parser.add_argument("--step", type=int, help="step of a checkpoint folder; default the newest")
    parser.add_argument(
        "--dtype",
        choices=("stored", "float32", "bfloat16", "float16"),
        default="stored",
        help="of the weights; a checkpoint stores float32",
    )
    parser.add_argument("--shard-size", default="5GB", help="largest file, as 500MB or 5GB")
    parser.add_argument(
        "--tokenizer", default="", help="bytes or a tokenizer.json, where the checkpoint has none"
    )
    asked = parser.parse_args(words)
    limit = bytes_of(asked.shard_size)
    # Imported here: torch takes seconds, and --help needs none of it.
    from .exporting import Order, export

    done = export(Order(asked.checkpoint, asked.out, asked.step, asked.dtype, limit, asked.tokenizer), tell)
    tell(f"{asked.out} is {done.origin} as {done.architecture}, {done.bytes:,} bytes of {done.dtype} weights")
    if not done.tokenizer:
        tell("it has no tokenizer: the checkpoint does not know it; name it with --tokenizer")
    return 0


def tell(line: str) -> None:
    """One line on standard output."""
    sys.stdout.write(f"{line}\n")


def bytes_of(text: str) -> int:
    """500MB -> 500,000,000. BadConfig for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?B)?", text.strip(), re.IGNORECASE)
    size = int(float(match.group(1)) * _UNITS[(match.group(2) or "").upper()]) if match else 0
    if size < 1:
        raise BadConfig(f"--shard-size={text} is no size; write it as 500MB or 5GB")
    return size
