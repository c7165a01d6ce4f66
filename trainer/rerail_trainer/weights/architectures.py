"""The architectures of the Hugging Face layout that this program reads and writes, as tables. Torch-free.

An architecture is what it computes in our settings (`settings`), how the keys of config.json give the other
settings (`keys`), which keys must have which value because nothing else is computed here (`fixed`), and
how its tensors are named. Theirs and ours use RoPE in its halves form, so no tensor is reordered.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Values = Mapping[str, Any]

SHARED_KEYS: Mapping[str, str] = {
    "vocab_size": "vocab",
    "hidden_size": "dim",
    "intermediate_size": "ffn",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "seq_len",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie",
}
EXPERT_KEYS: Mapping[str, str] = {
    "num_experts_per_tok": "experts_per_token",
    "moe_intermediate_size": "expert_ffn",
    "norm_topk_prob": "router_norm",
}

SHARED_FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "attention_dropout": (0.0,),
    "mlp_bias": (False,),
    "clip_qkv": (None,),
    "quantization_config": (None,),
    "rope_interleaved": (False,),
    "router_jitter_noise": (0.0,),
}
"""Keys that change the computation: read with these values only; a key that is missing has the first."""

HARMLESS = frozenset(
    {
        *("architectures", "model_type", "transformers_version", "auto_map", "torch_dtype", "dtype"),
        *("use_cache", "initializer_range", "pretraining_tp", "max_window_layers", "tokenizer_class"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "output_router_logits", "router_aux_loss_coef"),
        *("return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward"),
        *("is_llama_config", "transformers.js_config", "unsloth_version", "unsloth_fixed"),
    }
)
"""Keys without a part in the forward pass. Any other key that no table names is refused."""

SLIDING = "sliding_window"
"""Means nothing while use_sliding_window is false."""
DENSE_LIST, SPARSE_STEP = "mlp_only_layers", "decoder_sparse_step"
SHARED_COUNT = "n_shared_experts"
"""Width of the shared expert in units of one expert's."""
HEAD_NORM = "use_qk_norm"

ROOT_TENSORS: Mapping[str, str] = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_ATTENTION: Mapping[str, str] = {
    f"attention.{ours}.weight": f"self_attn.{theirs}.weight"
    for ours, theirs in (
        ("query", "q_proj"),
        ("key", "k_proj"),
        ("value", "v_proj"),
        ("out", "o_proj"),
        ("query_norm", "q_norm"),
        ("key_norm", "k_norm"),
    )
}
_PRE_NORM: Mapping[str, str] = {
    "attention_norm.weight": "input_layernorm.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
}
_POST_NORM: Mapping[str, str] = {
    "attention_norm.weight": "post_attention_layernorm.weight",
    "feed_forward_norm.weight": "post_feedforward_layernorm.weight",
}
_DENSE: Mapping[str, str] = {
    f"feed_forward.{part}.weight": f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")
}
_ROUTER: Mapping[str, str] = {"feed_forward.router.weight": "mlp.gate.weight"}
_EXPERTS: Mapping[str, str] = {
    f"feed_forward.experts.{part}": f"mlp.experts.{{e}}.{part}_proj.weight" for part in ("gate", "up", "down")
}
_SHARED_EXPERT: Mapping[str, str] = {
    f"feed_forward.shared.{part}.weight": f"mlp.shared_experts.{part}_proj.weight"
    for part in ("gate", "up", "down")
}


@dataclass(frozen=True)
class Architecture:
    """One class of `transformers`, in our words."""

    name: str
    """As `architectures` in config.json names it."""
    model_type: str
    settings: Values
    """Settings of ModelConfig that have one value here; a tuple lists all that are possible."""
    tensors: Mapping[str, str]
    """Names inside a block: ours -> theirs; {e} is an expert's number."""
    keys: Mapping[str, str] = field(default_factory=lambda: SHARED_KEYS)
    """Key of config.json -> setting. A setting with several keys is written under the first."""
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Beside or instead of SHARED_FIXED. Written, so that no default of another version slips in."""
    defaults: Values = field(default_factory=dict)
    """Settings whose key may be missing."""
    special: frozenset[str] = frozenset()
    """Keys whose meaning is no single setting: `config_json` knows them."""
    rotary: float = 1.0
    """Share of a head that RoPE turns where config.json does not say; only 1 is computed here."""
    heads: Literal["any", "divide", "fill"] = "any"
    """divide: the number of heads divides dim; fill: heads x head_dim is dim."""

    @property
    def mixture(self) -> bool:
        """Whether its blocks have experts."""
        return self.settings.get("experts") != 0

    def fixed_values(self) -> dict[str, tuple[Any, ...]]:
        """All keys that must have one of these values."""
        return {**SHARED_FIXED, **self.fixed}


_DENSE_SETTINGS: Values = {"experts": 0, "mlp": "swiglu"}
_SOFTMAX: Values = {
    "mlp": "swiglu",
    "router_score": "softmax",
    "router_scale": 1.0,
    "shared_ffn": 0,
    "balance_bias": 0.0,
}
_LLAMA: Values = {**_DENSE_SETTINGS, "norm": "pre", "qk_norm": "none"}
_EXPERT_WIDTH_KEYS: Mapping[str, str] = {**SHARED_KEYS, "intermediate_size": "expert_ffn"}
"""Of architectures without any dense block: the one width is that of an expert."""

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        "LlamaForCausalLM",
        "llama",
        settings=_LLAMA,
        tensors={**_ATTENTION, **_PRE_NORM, **_DENSE},
        defaults={"norm_eps": 1e-6, "tie": False},
        heads="divide",
    ),
    Architecture(
        "MistralForCausalLM",
        "mistral",
        settings=_LLAMA,
        tensors={**_ATTENTION, **_PRE_NORM, **_DENSE},
        fixed={"sliding_window": (None,)},
        defaults={"norm_eps": 1e-6, "tie": False},
    ),
    Architecture(
        "Qwen3ForCausalLM",
        "qwen3",
        settings={**_DENSE_SETTINGS, "norm": "pre", "qk_norm": "head"},
        tensors={**_ATTENTION, **_PRE_NORM, **_DENSE},
        special=frozenset({SLIDING}),
        fixed={"use_sliding_window": (False,)},
        defaults={"norm_eps": 1e-6, "tie": False, "head_dim": 128},
    ),
    Architecture(
        "Olmo2ForCausalLM",
        "olmo2",
        settings={**_DENSE_SETTINGS, "norm": "post", "qk_norm": "full"},
        tensors={**_ATTENTION, **_POST_NORM, **_DENSE},
        defaults={"norm_eps": 1e-5, "tie": False},
    ),
    Architecture(
        "ArceeForCausalLM",
        "arcee",
        settings={"experts": 0, "mlp": "gelu", "norm": "pre", "qk_norm": "none"},
        tensors={**_ATTENTION, **_PRE_NORM, **_DENSE},
        fixed={"hidden_act": ("gelu_pytorch_tanh", "gelu_new")},
        defaults={"norm_eps": 1e-5, "tie": False},
        heads="divide",
    ),
    Architecture(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        settings={**_SOFTMAX, "norm": "pre", "qk_norm": "head"},
        tensors={**_ATTENTION, **_PRE_NORM, **_DENSE, **_ROUTER, **_EXPERTS},
        keys={**SHARED_KEYS, **EXPERT_KEYS, "num_experts": "experts", "num_local_experts": "experts"},
        fixed={"use_sliding_window": (False,)},
        special=frozenset({SLIDING, DENSE_LIST, SPARSE_STEP}),
        defaults={"norm_eps": 1e-6, "tie": False, "router_norm": False},
    ),
    Architecture(
        "MixtralForCausalLM",
        "mixtral",
        settings={**_SOFTMAX, "norm": "pre", "qk_norm": "none", "router_norm": True, "dense_layers": 0},
        tensors={
            **_ATTENTION,
            **_PRE_NORM,
            "feed_forward.router.weight": "block_sparse_moe.gate.weight",
            "feed_forward.experts.gate": "block_sparse_moe.experts.{e}.w1.weight",
            "feed_forward.experts.up": "block_sparse_moe.experts.{e}.w3.weight",
            "feed_forward.experts.down": "block_sparse_moe.experts.{e}.w2.weight",
        },
        keys={
            **_EXPERT_WIDTH_KEYS,
            "num_experts_per_tok": "experts_per_token",
            "num_local_experts": "experts",
        },
        fixed={"sliding_window": (None,)},
        defaults={"norm_eps": 1e-5, "tie": False},
    ),
    Architecture(
        "OlmoeForCausalLM",
        "olmoe",
        settings={**_SOFTMAX, "norm": "pre", "qk_norm": "full", "dense_layers": 0},
        tensors={**_ATTENTION, **_PRE_NORM, **_ROUTER, **_EXPERTS},
        keys={
            **_EXPERT_WIDTH_KEYS,
            "num_experts_per_tok": "experts_per_token",
            "norm_topk_prob": "router_norm",
            "num_experts": "experts",
            "num_local_experts": "experts",
        },
        heads="fill",
        defaults={"norm_eps": 1e-5, "tie": False, "router_norm": False},
    ),
    Architecture(
        "Glm4MoeForCausalLM",
        "glm4_moe",
        settings={"mlp": "swiglu", "norm": "pre", "qk_norm": ("none", "head"), "router_score": "sigmoid"},
        tensors={
            **_ATTENTION,
            **_PRE_NORM,
            **_DENSE,
            **_ROUTER,
            **_EXPERTS,
            **_SHARED_EXPERT,
            "feed_forward.balance": "mlp.gate.e_score_correction_bias",
        },
        keys={
            **SHARED_KEYS,
            **EXPERT_KEYS,
            "n_routed_experts": "experts",
            "routed_scaling_factor": "router_scale",
            "first_k_dense_replace": "dense_layers",
        },
        special=frozenset({SHARED_COUNT, HEAD_NORM}),
        rotary=0.5,
        fixed={"n_group": (1,), "topk_group": (1,), "num_nextn_predict_layers": (0,)},
        defaults={"norm_eps": 1e-5, "tie": False},
    ),
)
"""Where several express a model, the first is written."""


def names_read() -> str:
    """The architectures, for a refusal."""
    return ", ".join(architecture.name for architecture in ARCHITECTURES)
