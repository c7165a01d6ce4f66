"""`eval`: held-out loss, multiple choice, or lm-eval's tasks. Torch-free until a model is opened."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rerail_trainer.commands import Words
from rerail_trainer.data.bar import Bar
from rerail_trainer.failures import BadConfig

from . import lm_eval_hook
from .asked import Asked, add_model_words, open_asked
from .documents import documents_of
from .items import TEMPLATE, Item, Shots, read_items
from .lines import refuse_existing, with_newlines, write_lines

if TYPE_CHECKING:
    from .choices import Verdict


def main(words: Sequence[str]) -> int:
    """Writes what was measured to standard output, for people or with --json as one object."""
    options = _words().parse_args(words)
    _check(options)
    if options.lm_eval:
        return lm_eval_hook.run(options.model, options.step, _harness(options))
    if options.out:
        refuse_existing(options.out)
    items = read_items(options.choices) if options.choices else []
    shots = _shots(options) if options.choices else Shots()
    asked = open_asked(options.model, options)
    report: dict[str, Any] = {"model": asked.origin}
    if options.held_out:
        report["held_out"] = _held_out(asked, options)
    if options.choices:
        report["choices"] = _choices(asked, items, shots, options)
    sys.stdout.write(json.dumps(report, indent=1) + "\n" if options.json else _for_people(report))
    return 0


def _words() -> Words:
    words = Words("eval", "Measures a trained model. One of --held-out, --choices and --lm-eval is needed.")
    words.add_argument("model", help="checkpoint folder, step folder, or exported model directory")
    words.add_argument("--held-out", metavar="DATA", help="prepared folder, text files or .jsonl")
    words.add_argument("--field", default="text", help="field of .jsonl lines that holds the text")
    words.add_argument(
        "--max-tokens", type=int, default=0, help="read whole documents until so many tokens; 0: all"
    )
    words.add_argument(
        "--stride", type=int, default=0, help="tokens by which the window moves on; 0: half the window"
    )
    words.add_argument("--choices", metavar="FILE", help=".jsonl with question, choices, answer")
    words.add_argument(
        "--template",
        type=with_newlines,
        default=TEMPLATE.replace("\n", "\\n"),
        help="how a question is put; {question} is replaced, \\n is understood",
    )
    words.add_argument("--letters", action="store_true", help="list the choices and score their letters")
    words.add_argument("--few-shot", type=int, default=0, metavar="N", help="solved examples before each")
    words.add_argument("--few-shot-from", metavar="FILE", help="where those come from; default --choices")
    words.add_argument(
        "--out", metavar="FILE", help="a JSON line per item of --choices; for --lm-eval its results"
    )
    words.add_argument("--lm-eval", metavar="TASKS", help="tasks of lm-eval, with commas between")
    words.add_argument("--include-path", default="", help="folder of lm-eval tasks of your own")
    words.add_argument("--limit", type=int, default=0, help="only so many items; 0: all")
    words.add_argument("--batch-tokens", type=int, default=8192, help="tokens through the model at once")
    add_model_words(words)
    words.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    return words


def _check(options: argparse.Namespace) -> None:
    rules = [
        (
            bool(options.held_out or options.choices or options.lm_eval),
            "eval needs --held-out DATA, --choices FILE.jsonl or --lm-eval TASK",
        ),
        (
            not (options.lm_eval and (options.held_out or options.choices)),
            "--lm-eval is a program of its own: ask for it alone",
        ),
        ("{question}" in options.template, "--template must hold {question}"),
        (
            not options.out or not options.held_out or bool(options.choices),
            "--out writes the items of --choices",
        ),
        (options.batch_tokens >= 1, f"--batch-tokens {options.batch_tokens} must be at least 1"),
        (
            min(options.max_tokens, options.stride, options.few_shot, options.limit) >= 0,
            "--max-tokens, --stride, --few-shot and --limit must not be negative",
        ),
    ]
    for holds, message in rules:
        if not holds:
            raise BadConfig(message)


def _harness(options: argparse.Namespace) -> lm_eval_hook.Harness:
    return lm_eval_hook.Harness(
        tasks=options.lm_eval,
        include_path=options.include_path,
        few_shot=options.few_shot,
        limit=options.limit,
        device=options.device,
        dtype=options.dtype,
        out=options.out or "",
    )


def _held_out(asked: Asked, options: argparse.Namespace) -> dict[str, Any]:
    from .heldout import Reach, measure

    window = asked.model.config.seq_len
    if options.stride > window:
        raise BadConfig(f"--stride {options.stride} must be at most the model's window, {window}")
    stride = options.stride or max(1, window // 2)
    documents = list(documents_of(options.held_out, options.field, asked.tokenizer))
    total = sum(len(document.tokens) for document in documents)
    reach = Reach(stride, options.batch_tokens, options.max_tokens)
    with _progress("held-out", min(total, options.max_tokens or total), "tokens") as told:
        measured = measure(asked, documents, reach, told)
    return {"data": options.held_out, "window": window, "stride": stride, **asdict(measured)}


@contextmanager
def _progress(label: str, total: int, unit: str) -> Iterator[Callable[[int], None] | None]:
    """A bar for somebody who watches; else nothing, so that the figures stand alone."""
    if not sys.stderr.isatty():
        yield None
        return
    bar = Bar(label, total, unit, sys.stderr)
    yield bar.add
    bar.close()


def _shots(options: argparse.Namespace) -> Shots:
    examples: list[Item] = []
    if options.few_shot:
        examples = read_items(options.few_shot_from or options.choices)
    return Shots(options.template, options.letters, options.few_shot, examples)


def _choices(asked: Asked, items: list[Item], shots: Shots, options: argparse.Namespace) -> dict[str, Any]:
    from .choices import judge

    items = items[: options.limit or None]
    with _progress("choices", len(items), "items") as told:
        verdicts = judge(asked, items, shots, options.batch_tokens, told)
    if options.out:
        write_lines(options.out, map(_row, verdicts))
    categories = sorted({verdict.item.category for verdict in verdicts} - {""})
    summary: dict[str, Any] = {"data": options.choices, "few_shot": shots.count, **_summary(verdicts)}
    if categories:
        summary["categories"] = {
            name: _summary([verdict for verdict in verdicts if verdict.item.category == name])
            for name in categories
        }
    return summary


def _summary(verdicts: Sequence["Verdict"]) -> dict[str, Any]:
    from .choices import accuracy

    plain = accuracy([verdict.chosen == verdict.item.answer for verdict in verdicts])
    by_byte = accuracy([verdict.chosen_by_byte == verdict.item.answer for verdict in verdicts])
    return {
        "items": plain.items,
        "cut": sum(verdict.cut for verdict in verdicts),
        "accuracy": plain.share,
        "accuracy_standard_error": plain.standard_error,
        "accuracy_by_byte": by_byte.share,
        "accuracy_by_byte_standard_error": by_byte.standard_error,
    }


def _row(verdict: "Verdict") -> dict[str, Any]:
    return {
        **asdict(verdict.item),
        "log_likelihoods": verdict.log_likelihoods,
        "chosen": verdict.chosen,
        "chosen_by_byte": verdict.chosen_by_byte,
        "cut": verdict.cut,
    }


def _for_people(report: dict[str, Any]) -> str:
    lines = [str(report["model"])]
    if "held_out" in report:
        told = report["held_out"]
        lines += [
            f"held-out {told['data']}: {told['documents']:,} documents, {told['tokens']:,} tokens, "
            f"{told['bytes']:,} bytes; window {told['window']}, stride {told['stride']}",
            f"  bits per byte  {_with_error(told, 'bits_per_byte')}",
            f"  loss           {_with_error(told, 'loss')} nats per token; "
            f"perplexity {told['perplexity']:.2f}",
        ]
    if "choices" in report:
        told = report["choices"]
        lines.append(f"choices {told['data']}: {told['items']:,} items, few-shot {told['few_shot']}")
        if told["cut"]:
            lines.append(f"  {told['cut']} did not fit the model's window and lost their beginning")
        for name, row in {"": told, **told.get("categories", {})}.items():
            lines.append(
                f"  {name or 'accuracy':<14} {_with_error(row, 'accuracy')}, "
                f"by length {_with_error(row, 'accuracy_by_byte')}"
            )
    return "\n".join(lines) + "\n"


def _with_error(row: dict[str, Any], name: str) -> str:
    error = row[f"{name}_standard_error"]
    return f"{row[name]:.4f}" + ("" if error is None else f" ± {error:.4f}")
