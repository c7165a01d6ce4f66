"""Open weights are the same model here and in `transformers`: read from its directories, and written for it.

Measured with torch 2.15 on a CPU, float32, one thread, logits up to 5: dense models differ by nothing at all, as both
call the same kernels in the same order; mixtures by at most 1.2e-6, as they sum a token's experts in another order.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rerail_trainer.__main__ import main
from rerail_trainer.config import ModelConfig
from rerail_trainer.data.chat import open_template
from rerail_trainer.data.tokenizer import open_tokenizer
from rerail_trainer.failures import BadConfig, TrainerExit
from rerail_trainer.presets import PRESETS
from rerail_trainer.weights import open_model
from rerail_trainer.weights.config_json import architecture_of, config_json, model_of
from rerail_trainer.weights.exporting import Order, export
from rerail_trainer.weights.tokenizer_files import byte_level_form, ends_of

from .gang import Yard
from .open_weights import REFERENCES, opened_by_transformers, saved_reference, tokenizer_by_transformers

CPU = torch.device("cpu")
TOLERANCE = 1e-5
TOKENS = torch.randint(0, 300, (2, 60), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=REFERENCES.values(), ids=REFERENCES.keys())
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("reference")
    return saved_reference(request.param, folder), folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the commonest kind."""
    folder = tmp_path_factory.mktemp("plain")
    saved_reference(REFERENCES["llama"], folder)
    return folder


def silent(_: str) -> None:
    """Nobody is told of finished files."""


@torch.no_grad()
def test_a_model_directory_gives_the_logits_of_transformers(reference: tuple[Any, Path]) -> None:
    theirs, folder = reference
    ours = open_model(str(folder), CPU)
    torch.testing.assert_close(ours.model.logits(TOKENS), theirs(TOKENS).logits, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_what_is_exported_is_for_transformers_the_same_model(
    reference: tuple[Any, Path], tmp_path: Path
) -> None:
    theirs, folder = reference
    export(Order(str(folder), str(tmp_path / "out"), limit=20_000), silent)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    again = opened_by_transformers(tmp_path / "out")
    # What two architectures compute alike is written as the first that can be: Mistral as Llama.
    same = {"LlamaForCausalLM", "MistralForCausalLM"}
    assert type(again) is type(theirs) or {type(again).__name__, type(theirs).__name__} == same
    assert again.state_dict().keys() == theirs.state_dict().keys()
    for name, values in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], values), name
    torch.testing.assert_close(again(TOKENS).logits, theirs(TOKENS).logits, atol=TOLERANCE, rtol=0)


def test_an_export_opens_here_as_the_same_model_to_the_bit(
    reference: tuple[Any, Path], tmp_path: Path
) -> None:
    _, folder = reference
    export(Order(str(folder), str(tmp_path / "out")), silent)
    before, after = open_model(str(folder), CPU), open_model(str(tmp_path / "out"), CPU)
    assert after.config == before.config
    for name, values in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], values), name


def test_weights_in_bfloat16_are_half_as_long_and_nearly_the_same(plain: Path, tmp_path: Path) -> None:
    whole = export(Order(str(plain), str(tmp_path / "whole")), silent)
    half = export(Order(str(plain), str(tmp_path / "half"), dtype="bfloat16"), silent)
    assert half.bytes * 2 == whole.bytes
    opened = open_model(str(tmp_path / "half"), CPU).model
    assert opened.head.weight.dtype is torch.bfloat16
    torch.testing.assert_close(
        opened.head.weight.float(), open_model(str(plain), CPU).model.head.weight, atol=0.01, rtol=0.01
    )


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "default"])
def test_every_preset_can_be_exported_and_its_config_json_reads_back(name: str) -> None:
    config = PRESETS[name].model
    architecture = architecture_of(config)
    training_alone = {"balance_loss": config.balance_loss, "balance_bias": config.balance_bias}
    read = model_of(architecture, json.loads(json.dumps(config_json(config, architecture))))
    assert ModelConfig(**{**vars(read), **training_alone}) == config


REFUSED = {
    "another architecture": (
        {"architectures": ["GPT2LMHeadModel"]},
        "the model is GPT2LMHeadModel; read are Llama",
    ),
    "biases": ({"attention_bias": True}, "attention_bias=True is not computed here"),
    "another activation": ({"hidden_act": "relu"}, "hidden_act=relu is not computed here"),
    "quantised weights": ({"quantization_config": {"bits": 4}}, "quantization_config="),
    "a sliding window": (
        {"architectures": ["MistralForCausalLM"], "sliding_window": 4096},
        "sliding_window=4096",
    ),
    "a window in some layers": (
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "names sliding_attention",
    ),
    "another RoPE": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "RoPE of the type yarn"),
    "part of a head turned": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    "a key that nobody knows": ({"attn_sinks": 4}, "attn_sinks is no key of LlamaForCausalLM"),
    "a shape that is missing": ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
    "a shape that is text": ({"hidden_size": "32"}, 'hidden_size="32" is not of the kind int'),
    "heads that do not share evenly": ({"num_key_value_heads": 3}, "must divide"),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_computed_here_is_refused_by_name(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    plain = ModelConfig(layers=3, dim=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab=300, seq_len=64)
    tree = {**config_json(plain, architecture_of(plain)), **changes}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(BadConfig) as refusal:
        open_model(str(tmp_path), CPU)
    assert words in refusal.value.message
    assert str(tmp_path) in refusal.value.message


INEXPRESSIBLE = {
    "normalised queries with GELU": ({"qk_norm": "head", "mlp": "gelu"}, "model.mlp=gelu"),
    "a sigmoid router without a shared expert": (
        {"experts": 4, "router_score": "sigmoid", "router_scale": 2.0},
        "model.shared_ffn=0 at model.expert_ffn=48",
    ),
    "a bias of softmax scores": ({"experts": 4, "balance_bias": 0.1}, "model.balance_bias=0.1"),
}


@pytest.mark.parametrize(("changes", "words"), INEXPRESSIBLE.values(), ids=INEXPRESSIBLE.keys())
def test_a_model_that_no_architecture_computes_is_refused_with_the_setting(
    changes: dict[str, Any], words: str
) -> None:
    shape = {"layers": 2, "dim": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 48, "vocab": 300}
    with pytest.raises(BadConfig, match=words):
        architecture_of(ModelConfig(**{**shape, **changes}))


def test_an_export_that_broke_off_is_no_model_and_is_begun_anew(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def break_off(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(Order(str(plain), str(out), limit=20_000), break_off)
    assert list(out.glob("*.safetensors"))
    with pytest.raises(BadConfig, match="neither"):
        open_model(str(out), CPU)
    export(Order(str(plain), str(out)), silent)
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    with pytest.raises(BadConfig, match=r"already holds config\.json"):
        export(Order(str(plain), str(out)), silent)


def test_a_file_cut_short_is_refused(plain: Path, tmp_path: Path) -> None:
    export(Order(str(plain), str(tmp_path / "out"), limit=20_000), silent)
    last = max((tmp_path / "out").glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(TrainerExit, match="cut short"):
        open_model(str(tmp_path / "out"), CPU)
    last.unlink()
    with pytest.raises(TrainerExit, match="No such file"):
        open_model(str(tmp_path / "out"), CPU)


def test_wrong_words_are_one_line_with_what_to_write(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "x"), "--shard-size", "big"]) == 64
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "x")]) == 64
    lines = capsys.readouterr().err.splitlines()
    assert "--shard-size=big is no size; write it as 500MB or 5GB" in lines[0]
    assert "neither a committed checkpoint nor config.json" in lines[1]


TRAINED = {
    "dense": (),
    "sigmoid scores, moving bias, shared expert": (
        "--model.experts=4",
        "--model.expert_ffn=16",
        "--model.shared_ffn=32",
        "--model.dense_layers=1",
        "--model.router_score=sigmoid",
        "--model.router_scale=1.5",
        "--model.balance_bias=0.01",
    ),
    "GELU, tied": ("--model.mlp=gelu", "--model.tie=true"),
}


@pytest.mark.parametrize("words", TRAINED.values(), ids=TRAINED.keys())
@torch.no_grad()
def test_a_checkpoint_is_exported_with_its_tokenizer_and_opens_in_transformers_with_the_same_logits(
    yard: Yard, words: tuple[str, ...]
) -> None:
    yard.run("--train.steps=4", *words, ranks=2)
    out = yard.folder / "model"
    assert main(["export", str(yard.checkpoints), "--out", str(out), "--step", "4"]) == 0
    ours, theirs = open_model(str(yard.checkpoints), CPU), opened_by_transformers(out)
    tokens = TOKENS[:, :16] % 257
    torch.testing.assert_close(ours.model.logits(tokens), theirs(tokens).logits, atol=TOLERANCE, rtol=0)
    tokenizer = tokenizer_by_transformers(out)
    assert tokenizer.eos_token_id == theirs.generation_config.eos_token_id == 256
    assert_same_tokenizer(tokenizer, ours.tokenizer)
    # The directory alone is enough to sample from here, too.
    assert_same_tokenizer(tokenizer, open_model(str(out), CPU).tokenizer)


TEXTS = (
    "To be, or not to be: that is the question.",
    "  two  spaces\tand a tab\r\n\n",
    "naïve café, 東京, \N{PILE OF POO}\N{COMBINING ACUTE ACCENT}",
    "def f(x):\n    return {1: 'a'}[x]\x00\x7f",
)


def assert_same_tokenizer(theirs: Any, ours: Any) -> None:
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs(text, add_special_tokens=False).input_ids == ids
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == ours.decode(ids) == text
    assert theirs.decode([0xE6, 0x9D, 0x41]) == ours.decode([0xE6, 0x9D, 0x41]), "half a letter is told alike"


def test_a_tokenizer_with_its_settings_goes_from_the_data_over_the_checkpoint_into_the_export(
    yard: Yard,
) -> None:
    text = yard.folder / "text"
    text.mkdir()
    (text / "a.txt").write_text("To be or not to be, that is the question. " * 400)
    data = yard.folder / "data"
    assert main(["prepare", str(text), "--out", str(data), "--train-bpe", "300"]) == 0
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (data / "chat_template.jinja").write_text(template)
    yard.run("--data.source=shards", f"--data.path={data}", "--model.vocab=320", "--train.steps=2")
    out = yard.folder / "model"
    assert main(["export", str(yard.checkpoints), "--out", str(out)]) == 0
    ours, theirs = open_model(str(out), CPU).tokenizer, tokenizer_by_transformers(out)
    assert ours is not None
    assert (out / "tokenizer.json").read_bytes() == (data / "tokenizer.json").read_bytes()
    for text in TEXTS:
        assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text)
    assert theirs.eos_token_id == ours.end
    assert theirs.chat_template == template
    assert opened_by_transformers(out).generation_config.eos_token_id == ours.end


def test_a_model_that_was_trained_on_conversations_brings_the_template_and_the_end_of_its_answers(
    yard: Yard,
) -> None:
    talk = [{"role": "user", "content": "Who is there?"}, {"role": "assistant", "content": "Nay, answer me."}]
    chats = yard.folder / "chats.jsonl"
    chats.write_text(json.dumps({"messages": talk}) + "\n")
    words = ("--train.stage=sft", "--data.source=chat", f"--data.path={chats}", "--model.seq_len=64")
    yard.run(*words, "--batch.tokens_per_step=256", "--train.steps=1")
    out = yard.folder / "model"
    assert main(["export", str(yard.checkpoints), "--out", str(out)]) == 0
    theirs, ours = tokenizer_by_transformers(out), open_model(str(yard.checkpoints), CPU).tokenizer
    assert ours is not None
    text = theirs.apply_chat_template(talk, tokenize=False)
    assert text == open_template(ours).render(talk)
    assert text == "<|user|>\nWho is there?\n<|assistant|>\nNay, answer me.<|endoftext|>\n"
    assert opened_by_transformers(out).generation_config.eos_token_id == theirs.eos_token_id == 256


def test_answers_that_end_with_another_token_than_documents_end_with_both(tmp_path: Path) -> None:
    form = byte_level_form()
    mark = {**form["added_tokens"][0], "id": 257, "content": "<|im_end|>"}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({**form, "added_tokens": [*form["added_tokens"], mark]})
    )
    assert ends_of(open_tokenizer(str(tmp_path))) == 256
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": "{{ eos_token }}"})
    )
    assert ends_of(open_tokenizer(str(tmp_path))) == [257, 256]
