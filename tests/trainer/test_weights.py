"""Weights that lie somewhere: opened from checkpoints and model directories, and taken as a training's first values."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rerail_trainer.__main__ import main
from rerail_trainer.config import ModelConfig
from rerail_trainer.configure import read_command_line
from rerail_trainer.failures import BadConfig
from rerail_trainer.model import Transformer
from rerail_trainer.weights import open_model
from rerail_trainer.weights.config_json import architecture_of, config_json
from rerail_trainer.weights.names import counterparts
from rerail_trainer.weights.stored import read_box, stored_tensors

from .gang import Yard, Zygote

CPU = torch.device("cpu")
SMALL_MODEL = ModelConfig(layers=2, dim=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab=257, seq_len=16)
EXPERTS = (
    "--model.experts=4",
    "--model.experts_per_token=2",
    "--model.expert_ffn=16",
    "--model.dense_layers=1",
    "--model.qk_norm=head",
)
STANDING_STILL = ("--optim.lr=0", "--train.steps=1")
"""A training of one step that changes nothing, so that its checkpoint holds the first weights."""


def flip_first_value(path: Path) -> None:
    """Of a file of the safetensors form: the first tensor's first byte is another one."""
    data = bytearray(path.read_bytes())
    data[8 + int.from_bytes(data[:8], "little")] ^= 1
    path.write_bytes(data)


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_weights(one: Path | str, other: Path | str) -> None:
    expected = open_model(str(one), CPU).model.state_dict()
    got = open_model(str(other), CPU).model.state_dict()
    assert expected.keys() == got.keys()
    for name, values in expected.items():
        assert torch.equal(values, got[name]), name


def exported(checkpoints: Path | str, out: Path, *words: str) -> Path:
    assert main(["export", str(checkpoints), "--out", str(out), *words]) == 0
    return out


@pytest.fixture(scope="module")
def trained(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Checkpoint folders of a dense model and of one with experts, after four steps on two ranks."""
    folders = {}
    for name, words in (("dense", ()), ("experts", EXPERTS)):
        yard = Yard(zygote, tmp_path_factory.mktemp(name))
        yard.run("--train.steps=4", *words, ranks=2)
        folders[name] = yard.checkpoints
    yield folders


def test_a_checkpoint_folder_opens_at_its_newest_step_and_its_step_folders_at_theirs(
    trained: dict[str, Path],
) -> None:
    folder = trained["dense"]
    newest, older = open_model(str(folder), CPU), open_model(str(folder / "step-00000002"), CPU)
    assert newest.config == older.config == SMALL_MODEL
    assert newest.origin.endswith("step-00000004")
    assert older.origin.endswith("step-00000002")
    assert not torch.equal(newest.model.head.weight, older.model.head.weight)
    chosen = open_model(str(folder), CPU, step=2)
    assert torch.equal(chosen.model.head.weight, older.model.head.weight)
    with pytest.raises(BadConfig, match="has no committed step 3; committed are: 4, 2"):
        open_model(str(folder), CPU, step=3)


def test_the_tokenizer_of_the_training_is_known_to_who_opens_its_checkpoints(
    trained: dict[str, Path],
) -> None:
    opened = open_model(str(trained["dense"]), CPU)
    assert opened.tokenizer is not None
    assert (opened.tokenizer.name, opened.tokenizer.vocab, opened.tokenizer.end) == ("bytes", 257, 256)


def test_of_a_folder_with_a_damaged_step_the_one_before_it_opens_and_nothing_is_changed(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(trained["dense"], tmp_path / "checkpoints")
    for step in ("step-00000004", "step-00000002"):
        flip_first_value(folder / step / "rank-00001.safetensors")
        before = everything_in(folder)
        if step.endswith("4"):
            assert open_model(str(folder), CPU).origin.endswith("step-00000002")
        else:
            assert main(["export", str(folder), "--out", str(tmp_path / "out")]) == 66
            assert not (tmp_path / "out" / "config.json").exists()
        assert everything_in(folder) == before


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path, "neither a committed checkpoint nor config.json"),
        (tmp_path / "no", "no folder"),
    ):
        with pytest.raises(BadConfig, match=words):
            open_model(str(path), CPU)


LAYOUTS = {
    "one rank": ("dense", 1, ()),
    "two ranks that each hold half": ("dense", 2, ("--parallel.shard=2",)),
    "two ranks that share every product": ("dense", 2, ("--parallel.tensor=2",)),
    "experts on one rank": ("experts", 1, ()),
    "experts over two ranks": ("experts", 2, ("--parallel.expert=2",)),
    "experts of which each rank holds a half": ("experts", 2, ("--parallel.tensor=2",)),
    "experts over two ranks, and all cut": ("experts", 2, ("--parallel.shard=2", "--parallel.expert=2")),
}


@pytest.mark.parametrize(("kind", "ranks", "words"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_training_begins_with_exported_weights_to_the_bit(
    trained: dict[str, Path], yard: Yard, kind: str, ranks: int, words: tuple[str, ...]
) -> None:
    directory = exported(trained[kind], yard.folder / "exported", "--shard-size", "20KB")
    model = EXPERTS if kind == "experts" else ()
    gang = yard.run(f"--run.init_from={directory}", *STANDING_STILL, *model, *words, ranks=ranks)
    assert f"first weights from {directory}" in gang.output()
    assert "starting from step 0" in gang.output()
    assert_same_weights(trained[kind], yard.checkpoints)
    # And back: the layout cuts the pieces of the checkpoint in its own way.
    assert_same_weights(trained[kind], exported(yard.checkpoints, yard.folder / "again"))


def test_a_training_begins_with_the_model_of_a_checkpoint_and_with_a_fresh_optimizer(
    trained: dict[str, Path], yard: Yard
) -> None:
    weights = f"--run.init_from={trained['dense']}"
    gang = yard.run(weights, *STANDING_STILL, "--parallel.shard=2", ranks=2)
    assert_same_weights(trained["dense"], yard.checkpoints)
    assert gang.progress()[-1]["step"] == 1
    # Moments that came along would show in the first real step: it would differ from that of the exported weights.
    directory = exported(trained["dense"], yard.folder / "exported")
    begun = {
        origin: yard.run(f"--run.init_from={origin}", f"--checkpoint.dir={yard.folder}/{number}").losses()
        for number, origin in enumerate((trained["dense"], directory))
    }
    assert begun[trained["dense"]] == begun[directory]


def test_a_restart_goes_on_from_its_own_checkpoint_and_not_from_the_first_weights(
    trained: dict[str, Path], yard: Yard
) -> None:
    weights = f"--run.init_from={trained['dense']}"
    straight = yard.run(weights, f"--checkpoint.dir={yard.folder}/other", ranks=2).losses()
    half = yard.start(weights, "--train.steps=4", "--optim.horizon_steps=8", ranks=2)
    assert half.wait() == [0, 0]
    rest = yard.run(weights, ranks=2)
    assert "resumed from step 4" in rest.output()
    assert "first weights" not in rest.output()
    assert rest.losses() == {step: straight[step] for step in (5, 6, 7, 8)}


def test_a_restart_needs_the_first_weights_no_more(trained: dict[str, Path], yard: Yard) -> None:
    weights = exported(trained["dense"], yard.folder / "exported")
    words = (f"--run.init_from={weights}", "--optim.horizon_steps=8")
    begun = yard.start(*words, "--train.steps=4", ranks=2)
    assert begun.wait() == [0, 0]
    shutil.rmtree(weights)
    assert "resumed from step 4" in yard.run(*words, ranks=2).output()
    gone = yard.start(*words, f"--checkpoint.dir={yard.folder}/new")
    assert gone.wait() == [64]
    assert f"run.init_from={weights} holds neither config.json nor a committed checkpoint" in gone.output()


def test_a_checkpoint_in_an_object_store_opens_and_begins_a_training_like_one_in_a_folder(yard: Yard) -> None:
    store, elsewhere = f"file://{yard.folder}/store", f"file://{yard.folder}/elsewhere"
    yard.run(f"--checkpoint.dir={store}", "--train.steps=2", "--parallel.shard=2", ranks=2)
    yard.run(f"--checkpoint.dir={elsewhere}", f"--run.init_from={store}", *STANDING_STILL)
    assert_same_weights(store, elsewhere)
    opened = open_model(f"{store}/step-00000002", CPU)
    assert opened.origin == f"{store}/step-00000002"
    assert opened.tokenizer is not None
    assert_same_weights(store, exported(store, yard.folder / "exported"))


def test_of_damaged_first_weights_the_step_before_is_taken_by_all_ranks(
    trained: dict[str, Path], yard: Yard
) -> None:
    folder = shutil.copytree(trained["dense"], yard.folder / "weights")
    flip_first_value(folder / "step-00000004" / "rank-00000.safetensors")
    gang = yard.run(f"--run.init_from={folder}", *STANDING_STILL, "--parallel.shard=2", ranks=2)
    assert "step 4 is damaged" in gang.output()
    assert_same_weights(trained["dense"] / "step-00000002", yard.checkpoints)
    flip_first_value(folder / "step-00000002" / "rank-00000.safetensors")
    none = yard.start(
        f"--run.init_from={folder}", *STANDING_STILL, f"--checkpoint.dir={yard.folder}/new", ranks=2
    )
    assert none.wait() == [66, 66]
    assert "is damaged" in none.output()


def test_another_model_than_that_of_the_weights_is_refused_on_every_rank(
    trained: dict[str, Path], yard: Yard
) -> None:
    gang = yard.start(f"--run.init_from={trained['dense']}", "--model.layers=3", "--model.ffn=64", ranks=2)
    assert gang.wait() == [64, 64]
    assert "is another model: model.ffn is 48 there, not 64, model.layers is 2 there, not 3" in gang.output()


def test_first_weights_bring_the_model_section_with_them(trained: dict[str, Path]) -> None:
    words = [f"--run.init_from={trained['dense']}", "--batch.tokens_per_step=256"]
    assert read_command_line(["--preset=tiny", *words]).config.model == SMALL_MODEL
    free = read_command_line([*words, "--model.seq_len=8", "--model.vocab=264", "--model.dropout=0.1"]).config
    assert free.model == replace(SMALL_MODEL, seq_len=8, vocab=264, dropout=0.1)
    with pytest.raises(BadConfig, match=r"model\.vocab is 257 there, not 256"):
        read_command_line([*words, "--model.vocab=256"])
    with pytest.raises(BadConfig, match=r"neither config\.json nor a committed checkpoint"):
        read_command_line(["--run.init_from=/nowhere"])


@pytest.fixture(scope="module")
def directory(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense model in the Hugging Face layout."""
    return exported(trained["dense"], tmp_path_factory.mktemp("directory") / "model")


def test_rows_for_tokens_that_the_weights_do_not_know_are_the_mean_of_the_others(
    directory: Path, yard: Yard
) -> None:
    words = (f"--run.init_from={directory}", "--model.vocab=264", "--parallel.shard=2")
    gang = yard.run(*words, *STANDING_STILL, ranks=2)
    assert (
        "the vocabulary is 7 tokens larger than there: their rows are the mean of all others" in gang.output()
    )
    model, known = open_model(str(yard.checkpoints), CPU).model, open_model(str(directory), CPU).model
    for name in ("embedding", "head"):
        rows, expected = getattr(model, name).weight, getattr(known, name).weight
        assert torch.equal(rows[:257], expected)
        assert torch.equal(rows[257:], expected.double().mean(0).float().expand(7, -1))


def test_all_tensors_that_do_not_fit_are_named_in_one_refusal_and_nothing_is_taken(
    directory: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(directory, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(47, 32)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadConfig) as refusal:
        open_model(str(broken), CPU)
    assert refusal.value.message.endswith(
        "does not hold this model; missing: norm.weight; left over: model.layers.0.self_attn.q_proj.bias; "
        "other shape: blocks.1.feed_forward.up.weight is 47x32, the model wants 48x32"
    )


def hollow_file(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A file of float32 zeros that takes no room on the disk."""
    tree, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * 4
        tree[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(tree).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def peak_bytes() -> int:
    """The most memory that this process held since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def test_an_export_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    config = ModelConfig(layers=12, dim=512, heads=4, kv_heads=4, head_dim=128, ffn=2048, vocab=257)
    architecture = architecture_of(config)
    with torch.device("meta"):
        ours = {name: tuple(t.shape) for name, t in Transformer(config).state_dict().items()}
    theirs = counterparts(architecture, ours)
    hollow_file(tmp_path, {theirs[name].names[0]: shape for name, shape in ours.items()})
    (tmp_path / "config.json").write_text(json.dumps(config_json(config, architecture)))
    forget_peak()
    before = peak_bytes()
    exported(tmp_path, tmp_path / "out", "--dtype", "bfloat16")
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert size > 95_000_000
    assert peak_bytes() - before < size / 5


def test_a_box_of_a_tensor_is_read_without_the_rest_of_it(tmp_path: Path) -> None:
    """Of a tensor of 64 GiB: more than there is memory, and minutes to read whole."""
    rows, columns = 1 << 20, 1 << 14
    hollow_file(tmp_path, {"wide": (rows, columns)})
    stored = stored_tensors(str(tmp_path))["wide"]
    with open(stored.file, "r+b") as file:
        file.seek(stored.start + ((rows - 2) * columns + 5) * 4)
        file.write(torch.tensor([1.0, 2.0, 3.0]).numpy().tobytes())
    whole = read_box(stored, (slice(rows - 3, rows), slice(0, columns)))
    assert whole[1, 5:8].tolist() == [1.0, 2.0, 3.0]
    assert float(whole.sum()) == 6.0
    assert torch.equal(read_box(stored, (slice(rows - 2, rows), slice(6, 9))), whole[1:, 6:9])
