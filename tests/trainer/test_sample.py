"""Sampled text follows from the model, the prompt and the seed alone."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rerail_trainer.__main__ import main
from rerail_trainer.evaluate.generate import Continuation, Sampling, draw, generate
from rerail_trainer.failures import BadConfig
from rerail_trainer.model import Transformer

from .gang import Yard, Zygote
from .models import DENSE, MIXED, a_model, single_threaded

GREEDY = Sampling(ends=(256,), vocab=257, max_tokens=12, temperature=0.0)
DRAWN = Sampling(ends=(256,), vocab=257, max_tokens=12, temperature=0.9, top_k=40, top_p=0.95, seed=7)
PROMPTS = [list(text.encode()) for text in ("To be", "or", "not to be, that is", "?", "the question")]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with single_threaded():
        yield


@pytest.fixture(scope="module", params=["dense", "mixture of experts"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return a_model(**(DENSE if request.param == "dense" else MIXED))


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_prompts_of_different_length_together_give_what_each_gives_alone(
    model: Transformer, sampling: Sampling
) -> None:
    together = generate(model, PROMPTS, sampling)
    one_by_one = generate(model, PROMPTS, replace(sampling, batch=1))
    assert together == one_by_one
    assert len({tuple(found.tokens) for found in together}) == len(PROMPTS)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_text_with_the_cache_is_text_without(model: Transformer, sampling: Sampling) -> None:
    assert generate(model, PROMPTS, sampling) == generate(model, PROMPTS, replace(sampling, cached=False))


def test_greedy_text_is_the_likeliest_token_each_time(model: Transformer) -> None:
    row = list(PROMPTS[0])
    for _ in range(GREEDY.max_tokens):
        row.append(int(model.logits(torch.tensor([row]))[0, -1].argmax()))
    assert generate(model, PROMPTS[:1], GREEDY) == [Continuation(row[len(PROMPTS[0]) :], "length")]


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    model, state = a_model(), torch.get_rng_state()
    first, again, other = (generate(model, PROMPTS, replace(DRAWN, seed=seed)) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), state)


def test_text_ends_at_the_end_token_which_is_no_part_of_it() -> None:
    model = a_model()
    whole = generate(model, PROMPTS, GREEDY)[0].tokens
    end = whole[4]
    found = generate(model, PROMPTS, replace(GREEDY, ends=(256, end)))[0]
    assert found == Continuation(whole[: whole.index(end)], "end")


def test_text_ends_where_a_stop_is_found_and_others_go_on() -> None:
    model = a_model()
    whole = [found.tokens for found in generate(model, PROMPTS, GREEDY)]
    found = generate(model, PROMPTS, GREEDY, stops=lambda tokens: tokens == whole[0][:3])
    assert found[0] == Continuation(whole[0][:3], "stop")
    assert [one.tokens for one in found[1:]] == whole[1:]


def test_text_ends_at_the_models_window() -> None:
    found = generate(a_model(), PROMPTS, replace(GREEDY, max_tokens=1000))
    assert [len(prompt) + len(one.tokens) for prompt, one in zip(PROMPTS, found, strict=True)] == [32] * 5
    assert {one.why for one in found} == {"length"}


def test_a_prompt_without_room_is_refused() -> None:
    with pytest.raises(BadConfig, match="prompt 2 has 32 tokens; this model takes 1 to 31"):
        generate(a_model(), [[1], [1] * 32], GREEDY)


def test_one_candidate_is_greedy_whether_by_number_or_by_mass() -> None:
    model = a_model()
    greedy = generate(model, PROMPTS, GREEDY)
    assert generate(model, PROMPTS, replace(GREEDY, temperature=1.0, top_k=1)) == greedy
    assert generate(model, PROMPTS, replace(GREEDY, temperature=1.0, top_p=1e-9)) == greedy


def test_tokens_come_as_often_as_their_probability_says() -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.3, 0.2]))
    even = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    sampling = Sampling(ends=(0,), vocab=4)
    counted = Counter(draw(logits.repeat(1000, 1), even, sampling).tolist())
    assert [counted[token] for token in range(4)] == pytest.approx([100, 400, 300, 200], abs=1)
    counted = Counter(draw(logits.repeat(1000, 1), even, replace(sampling, top_p=0.6)).tolist())
    assert [counted[token] for token in range(4)] == pytest.approx([0, 571, 429, 0], abs=1)
    counted = Counter(draw(logits.repeat(1000, 1), even, replace(sampling, top_k=3)).tolist())
    assert [counted[token] for token in range(4)] == pytest.approx([0, 444, 333, 222], abs=1)
    halved = Counter(draw(logits.repeat(1000, 1), even, replace(sampling, temperature=0.5)).tolist())
    assert [halved[token] for token in range(4)] == pytest.approx([33, 533, 300, 133], abs=1)


def test_ids_beyond_the_tokenizers_vocabulary_are_never_drawn() -> None:
    logits = torch.tensor([[0.0, 0.0, 9.0]])
    sampling = Sampling(ends=(0,), vocab=2)
    uniform = torch.tensor([0.9999999999999999], dtype=torch.float64)
    assert draw(logits, uniform, sampling).tolist() == [1]
    assert draw(logits, uniform, replace(sampling, temperature=0.0)).tolist() == [0]


@pytest.fixture(scope="module")
def checkpoints(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the steps of a short training on bytes."""
    yard = Yard(zygote, tmp_path_factory.mktemp("trained"))
    yard.run("--model.seq_len=32", "--checkpoint.keep=4")
    return yard.checkpoints


def test_sample_writes_texts_to_standard_output_and_their_speed_beside(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The with\n\nA class\n")
    words = ["sample", str(checkpoints), f"--prompts={prompts}", "--max-tokens=5"]
    assert main(words) == 0
    plain = capsys.readouterr()
    assert "tokens/s" in plain.err
    assert [line for line in plain.out.splitlines() if line.startswith(("The with", "A class"))]
    assert main([*words, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["The with", "A class"]
    assert plain.out == "".join(row["prompt"] + row["text"] + "\n" for row in rows)
    assert all(row["tokens"] == 5 or row["ended"] == "end" for row in rows)


def test_a_text_ends_before_the_first_stop_that_it_holds(
    checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(checkpoints), "--prompt=The with", "--max-tokens=30", "--seed=2", "--json"]
    assert main(words) == 0
    whole = json.loads(capsys.readouterr().out)["text"]
    spelled = whole[3].replace("\n", "\\n")
    assert main([*words, f"--stop={spelled}", "--stop=never to be seen"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == whole[: whole.index(whole[3])]
    assert found["ended"] == "stop"
    assert found["tokens"] < 30


def test_a_chat_asks_with_the_template_that_training_uses(
    checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(checkpoints), "--max-tokens=4", "--temperature=0", "--json"]
    assert main([*words, "--prompt=Hi", "--chat"]) == 0
    chatted = json.loads(capsys.readouterr().out)
    assert main([*words, "--prompt=<|user|>\nHi\n<|assistant|>\n"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == chatted["text"]
    assert chatted["prompt"] == "Hi"


def test_an_exported_model_writes_what_its_checkpoint_writes(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = tmp_path / "exported"
    assert main(["export", str(checkpoints), "--out", str(exported)]) == 0
    capsys.readouterr()
    texts = []
    for model in (checkpoints, exported):
        assert (
            main(["sample", str(model), "--prompt=The with", "--prompt=A", "--max-tokens=12", "--seed=3"])
            == 0
        )
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_eight_ranks_are_not_started_for_the_work_of_one(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "RANK": "3",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert main(["sample", str(checkpoints), "--prompt=a"]) == 64
    assert "8 ranks were started: ask for one" in capsys.readouterr().err


def test_two_steps_of_a_training_are_put_head_to_head(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "pairs.jsonl"
    prompts.write_text('{"prompt": "if"}\n{"prompt": "for"}\n')
    models = [str(path) for path in sorted(checkpoints.glob("step-*"))[-2:]]
    words = [
        "compare",
        *models,
        f"--prompts={prompts}",
        f"--out={out}",
        "--tokenizer=bytes",
        "--max-tokens=4",
    ]
    assert main(words) == 0
    assert "2 pairs" in capsys.readouterr().out
    key = [json.loads(line) for line in (tmp_path / "pairs.key.jsonl").read_text().splitlines()]
    assert [{row["left"], row["right"]} for row in key] == [set(models)] * 2
    assert main(words) == 64, "what is there is not overwritten"
    assert "is there already" in capsys.readouterr().err


COMPLAINTS = {
    "no prompt": ([], "sample needs --prompt TEXT"),
    "both": (["--prompt=a", "--prompts=b"], "sample needs --prompt TEXT"),
    "no mass": (["--prompt=a", "--top-p=0"], "--top-p 0.0 must lie above 0"),
    "no tokens": (["--prompt=a", "--max-tokens=0"], "--max-tokens 0 must be at least 1"),
    "no such file": (["--prompts=/nowhere"], "/nowhere cannot be read: No such file"),
    "unknown word": (["--prompt=a", "--heat=3"], "unrecognized arguments: --heat=3"),
    "long prompt": ([f"--prompt={'a' * 32}"], "prompt 1 has 32 tokens"),
}


@pytest.mark.parametrize("case", COMPLAINTS)
def test_what_cannot_be_sampled_is_told_in_one_line(
    checkpoints: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, complaint = COMPLAINTS[case]
    assert main(["sample", str(checkpoints), *words]) == 64
    told = capsys.readouterr()
    assert complaint in told.err
    assert len(told.err.splitlines()) == 1
    assert not told.out
