"""Fine-tuning on conversations: only answers count, and packing changes nothing."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerail_trainer.__main__ import main
from rerail_trainer.config import BatchConfig, Config, DataConfig, ModelConfig, TrainConfig
from rerail_trainer.data.conversations import Conversations, open_conversations
from rerail_trainer.data.packing import pack
from rerail_trainer.data.source import open_source
from rerail_trainer.data.tokenizer import open_tokenizer
from rerail_trainer.data.windows import IGNORED, Arrangement
from rerail_trainer.failures import BadConfig
from rerail_trainer.model import Transformer, fill

from .chats import CHATML, TALK, template_in
from .gang import Yard

# Packing.


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=200), seed=st.integers(0, 2**63))
@settings(max_examples=80)
def test_every_piece_is_packed_once_and_no_two_windows_would_fit_into_one(
    lengths: list[int], seed: int
) -> None:
    sizes = np.array(lengths)
    packing = pack(sizes, 40, seed)
    assert sorted(packing.members.tolist()) == list(range(len(lengths)))
    filled = sorted(int(sizes[packing.of(window)].sum()) for window in range(packing.windows))
    assert filled[-1] <= 40
    assert packing.windows == 1 or filled[0] + filled[1] > 40
    again = pack(sizes, 40, seed)
    assert again.members.tolist() == packing.members.tolist()
    assert again.borders.tolist() == packing.borders.tolist()


def conversations(folder: Path, count: int = 60) -> Path:
    """Questions whose answers can be learnt, of many lengths."""
    path = folder / "chat.jsonl"
    with path.open("w") as file:
        for index in range(count):
            talk = [{"role": "user", "content": f"say {index % 5}" + " please" * (index % 3)}]
            talk.append({"role": "assistant", "content": "abcde"[index % 5] * (2 + index % 4)})
            if index % 4 == 0:
                talk += [{"role": "user", "content": "more"}, {"role": "assistant", "content": "no"}]
            file.write(json.dumps({"messages": talk, "source": "made"}) + "\n")
    return path


CONFIG = Config(
    model=ModelConfig(layers=2, dim=32, heads=4, kv_heads=2, head_dim=8, ffn=48, seq_len=128, vocab=257),
    batch=BatchConfig(tokens_per_step=1024, micro_batch=4),
    train=TrainConfig(stage="sft"),
)


def config_of(folder: Path) -> Config:
    return replace(CONFIG, data=DataConfig(source="chat", path=str(conversations(folder))))


def test_packed_conversations_lose_what_they_lose_alone_and_only_answers_count(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    model = Transformer(config.model)
    fill(model, 3)
    windows = open_source(config).windows(Arrangement.of(config))
    rows = windows.rows(np.arange(windows.count))
    assert rows.targets is not None
    assert rows.documents is not None
    inputs = torch.from_numpy(rows.tokens.astype(np.int64))[:, :-1]
    targets, documents = torch.from_numpy(rows.targets), torch.from_numpy(rows.documents)
    with torch.no_grad():
        packed = float(model(inputs, targets, documents))
    alone, answered = lost_alone(model, tmp_path / "chat.jsonl")
    assert packed == pytest.approx(alone, rel=1e-5)
    assert int((targets != IGNORED).sum()) == answered
    assert windows.count < 60


def lost_alone(model: Transformer, file: Path) -> tuple[float, int]:
    """The loss of every answer's bytes after the text before it, one conversation at a time, without a mask."""
    total, count = 0.0, 0
    for line in file.read_text().splitlines():
        text, wanted = [], []
        for message in json.loads(line)["messages"]:
            said = [*message["content"].encode(), *([256] if message["role"] == "assistant" else [])]
            head = list(f"<|{message['role']}|>\n".encode())
            text += [*head, *said, 10]
            wanted += [False] * len(head) + [message["role"] == "assistant"] * len(said) + [False]
        tokens = torch.tensor(text)[None]
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(
                model.logits(tokens[:, :-1])[0].float(), tokens[0, 1:], reduction="none"
            )
        chosen = torch.tensor(wanted[1:])
        total += float(losses[chosen].sum())
        count += int(chosen.sum())
    return total, count


def test_conversations_in_one_window_do_not_see_each_other(tmp_path: Path) -> None:
    source = open_source(config_of(tmp_path))
    assert isinstance(source, Conversations)
    rows = source.windows(Arrangement.of(CONFIG)).rows(np.arange(4))
    assert rows.documents is not None
    assert rows.targets is not None
    for tokens, targets, documents in zip(rows.tokens, rows.targets, rows.documents, strict=True):
        assert set(np.diff(documents).tolist()) <= {0, 1}
        begins = np.flatnonzero(np.diff(documents, prepend=-1))
        # Every document but the padding begins with a question.
        assert {bytes(tokens[at : at + 8].tolist()) for at in begins[:-1]} == {b"<|user|>"}
        assert documents.max() >= 1
        # The last target of a conversation is no input: the next one begins in its place.
        seen = (targets != IGNORED) & (np.diff(documents, append=documents[-1]) == 0)
        assert (targets[seen] == tokens[1:][seen]).all()


def test_long_conversations_are_cut_and_those_without_an_answer_left_out_and_told(tmp_path: Path) -> None:
    talks = [
        [("user", "q"), ("assistant", "yes")],
        [("user", "q"), ("assistant", "x" * 200)],
        [("user", "q" * 200), ("assistant", "beyond the window")],
        [("user", "nobody answers")],
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"messages": [{"role": role, "content": text} for role, text in talk]})
            for talk in talks
        )
    )
    source = open_conversations(str(path), open_tokenizer("bytes"))
    windows = source.windows(Arrangement(64, 1, True, True, 257))
    assert windows.notes == (
        "2 conversations in 2 windows, 71.9% full",
        "2 conversations are longer than model.seq_len and were cut",
        "2 conversations have no answer to learn and were left out",
    )
    rows = windows.rows(np.arange(2))
    assert rows.targets is not None
    assert sorted((rows.targets != IGNORED).sum(axis=1).tolist()) == [
        4,
        64 - len("<|user|>\nq\n<|assistant|>\n") + 1,
    ]


REFUSED = {
    "no JSON": ("{\n", "chat.jsonl, line 2: no JSON"),
    "no messages": (
        '{"text": "a"}\n',
        'line 2: a conversation is {"messages": [{"role": ..., "content": ...}, ...]}',
    ),
    "a message without content": (
        '{"messages": [{"role": "user"}]}\n',
        "line 2: every message needs role and content",
    ),
    "content in parts": ('{"messages": [{"role": "user", "content": []}]}\n', "line 2: every message needs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_line_that_is_no_conversation_is_refused_by_its_number(
    case: str, yard: Yard, tmp_path: Path
) -> None:
    bad, message = REFUSED[case]
    path = conversations(tmp_path, 1)
    path.write_text(path.read_text() + bad)
    gang = yard.start("--train.stage=sft", "--data.source=chat", f"--data.path={path}")
    assert gang.wait() == [64]
    assert message in gang.output()


def test_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "hello?"}]}\n')
    with pytest.raises(BadConfig, match=r"no conversation in data\.path=.* has an answer"):
        open_conversations(str(path), open_tokenizer("bytes"))
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "q" * 99}, TALK[2]]}))
    with pytest.raises(BadConfig, match=r"no conversation has an answer within model\.seq_len=64"):
        open_conversations(str(path), open_tokenizer("bytes")).windows(Arrangement(64, 1, True, True, 257))


# Prepared.


def prepare(*words: object) -> int:
    return main(["prepare", *map(str, words)])


def test_prepared_conversations_are_those_of_the_json_lines(tokenizer_folder: Path, tmp_path: Path) -> None:
    template_in(tokenizer_folder, CHATML)
    path = conversations(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:30], json.dumps({"messages": TALK[:2]}), *lines[30:]]))
    rows = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    pyarrow.parquet.write_table(
        pyarrow.table({"messages": rows}), tmp_path / "chat.parquet", row_group_size=7
    )
    words = ("--chat", "--tokenizer", tokenizer_folder, "--chunk-bytes", "900", "--shard-tokens", "300")
    tokenizer = open_tokenizer(str(tokenizer_folder))
    direct = open_conversations(str(path), tokenizer)
    assert direct.unanswered == 1
    arrangement = Arrangement(48, 3, True, True, 400)
    wanted = direct.windows(arrangement).rows(np.arange(20))
    for index, source in enumerate((path, tmp_path / "chat.parquet")):
        out = tmp_path / f"out-{index}"
        assert prepare(source, *words, "--out", out, "--workers", index + 1) == 0
        assert len(list(out.glob("train-*.bin"))) > 5
        assert json.loads((out / "corpus.json").read_text())["skipped"] == 1
        prepared = open_source(
            Config(
                model=ModelConfig(vocab=400),
                data=DataConfig(source="chat", path=str(out), verify="digests"),
                train=TrainConfig(stage="sft"),
            )
        )
        assert isinstance(prepared, Conversations)
        assert prepared.borders.tolist() == direct.borders.tolist()
        assert prepared.answers.tolist() == direct.answers.tolist()
        assert prepared.tokenizer == str(out / "tokenizer.json")
        found = prepared.windows(arrangement).rows(np.arange(20))
        for ours, theirs in zip(found, wanted, strict=True):
            assert np.array_equal(ours, theirs)


def test_text_and_conversations_are_not_taken_for_each_other(
    yard: Yard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = conversations(tmp_path, 8)
    assert prepare(path, "--chat", "--out", tmp_path / "talks", "--workers", "1") == 0
    (tmp_path / "text.txt").write_text("only text " * 100)
    assert prepare(tmp_path / "text.txt", "--out", tmp_path / "text", "--workers", "1") == 0
    cases = {
        ("--data.source=shards", f"--data.path={tmp_path}/talks"): (
            64,
            "holds conversations: they are trained on with",
        ),
        ("--data.source=shards", f"--data.path={tmp_path}/talks/*.bin"): (83, "is no token shard"),
        ("--train.stage=sft", "--data.source=chat", f"--data.path={tmp_path}/text"): (
            64,
            "prepare them with --chat",
        ),
    }
    for words, (code, message) in cases.items():
        gang = yard.start(*words)
        assert gang.wait() == [code]
        assert message in gang.output()
    assert prepare(tmp_path / "text.txt", "--chat", "--out", tmp_path / "other") == 64
    assert "conversations are read from .jsonl and .parquet files" in capsys.readouterr().err
    path.write_text(path.read_text() + '{"messages": "none"}\n')
    assert prepare(path, "--chat", "--out", tmp_path / "third") == 64
    assert 'line 9: a conversation is {"messages"' in capsys.readouterr().err


# Trained.

CUTS = (
    (1, ("--batch.micro_batch=1",)),
    (4, ("--batch.micro_batch=1", "--parallel.shard=2")),
    (2, ("--parallel.tensor=2",)),
)
SFT = ("--train.stage=sft", "--model.seq_len=128", "--batch.tokens_per_step=1024", "--optim.lr=2e-2")


def test_a_model_is_fine_tuned_from_a_checkpoint_and_learns_the_answers(yard: Yard, tmp_path: Path) -> None:
    path = conversations(tmp_path)
    base = tmp_path / "base"
    yard.run(
        f"--checkpoint.dir={base}", "--model.seq_len=128", "--batch.tokens_per_step=1024", "--train.steps=4"
    )
    words = (*SFT, "--data.source=chat", f"--data.path={path}", f"--run.init_from={base}", "--train.steps=40")
    gang = yard.run(*words, "--checkpoint.every_steps=40", ranks=2)
    losses = gang.losses()
    assert "conversations in" in gang.output()
    assert losses[1] > 3.0
    assert losses[40] < losses[1] / 3


def test_fine_tuning_resumes_bit_for_bit_and_any_cut_of_the_batch_gives_its_losses(
    yard: Yard, tmp_path: Path
) -> None:
    words = (*SFT, "--data.source=chat", f"--data.path={conversations(tmp_path)}")
    straight = yard.run(*words, f"--checkpoint.dir={tmp_path}/straight", ranks=2).losses()
    assert prepare(tmp_path / "chat.jsonl", "--chat", "--out", tmp_path / "prepared", "--workers", "1") == 0
    ready = (*SFT, "--data.source=chat", f"--data.path={tmp_path}/prepared")
    few = ("--train.steps=3", "--optim.horizon_steps=8")
    first = {step: straight[step] for step in (1, 2, 3)}
    assert yard.run(*ready, *few, f"--checkpoint.dir={tmp_path}/ready", ranks=2).losses() == first
    gang = yard.start(*words, ranks=2, at={"rank": 0, "point": "due", "step": 6, "signal": "SIGKILL"})
    assert gang.end_of(0) == -signal.SIGKILL
    assert yard.run(*words, ranks=2).losses() == {step: straight[step] for step in (5, 6, 7, 8)}
    for index, (ranks, cut) in enumerate(CUTS):
        folder = f"--checkpoint.dir={tmp_path}/cut-{index}"
        assert yard.run(*words, *few, folder, *cut, ranks=ranks).losses() == pytest.approx(first, abs=5e-5)


def test_stage_and_source_belong_together(yard: Yard) -> None:
    gang = yard.start("--train.stage=sft")
    assert gang.wait() == [64]
    assert "train.stage=sft and data.source=chat belong together" in gang.output()
