"""Small models with random weights, made and saved by `transformers`: what open weights are compared with."""

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Reference:
    """A class of `transformers`, and keys of its config."""

    name: str
    keys: dict[str, Any] = field(default_factory=dict)


REFERENCES = {
    "llama": Reference("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0}}),
    "llama, tied, with its heads wider than dim / heads": Reference(
        "Llama", {"tie_word_embeddings": True, "head_dim": 16}
    ),
    "llama with the stretched RoPE of 3.1": Reference("Llama", {"rope_parameters": LLAMA3}),
    "mistral": Reference("Mistral", {"sliding_window": None}),
    "mistral with heads that do not divide its width": Reference(
        "Mistral",
        {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": None},
    ),
    "qwen3": Reference("Qwen3", {"head_dim": 16}),
    "qwen3, tied": Reference("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "olmo2": Reference("Olmo2"),
    "arcee with GELU": Reference("Arcee", {"hidden_act": "gelu_pytorch_tanh"}),
    "qwen3-moe": Reference("Qwen3Moe", {**EXPERTS, "moe_intermediate_size": 24, "norm_topk_prob": True}),
    "qwen3-moe, weights not normalised, first block dense": Reference(
        "Qwen3Moe", {**EXPERTS, "moe_intermediate_size": 24, "mlp_only_layers": [0]}
    ),
    "mixtral": Reference("Mixtral", {"num_local_experts": 6, "num_experts_per_tok": 2}),
    "olmoe": Reference("Olmoe", {**EXPERTS, "norm_topk_prob": True}),
    "glm4-moe: sigmoid scores, bias, shared expert": Reference(
        "Glm4Moe",
        {
            "n_routed_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "n_shared_experts": 2,
            "routed_scaling_factor": 2.5,
            "first_k_dense_replace": 1,
            "use_qk_norm": True,
            "partial_rotary_factor": 1.0,
            "num_nextn_predict_layers": 0,
        },
    ),
}
"""One per architecture that is read, and one per way in which an architecture varies."""


def saved_reference(reference: Reference, folder: Path) -> Any:
    """The model, with random weights in every tensor, also where new ones would be 1 or 0; saved in `folder`."""
    config = getattr(transformers, f"{reference.name}Config")(**{**SHAPE, **reference.keys})
    model = getattr(transformers, f"{reference.name}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, values in sorted(model.state_dict().items()):
            if values.dim() < 2:
                spread = 0.05 if name.endswith("bias") else 0.5
                values.copy_(torch.rand(values.shape, generator=generator) * spread + 0.5)
            else:
                values.copy_(torch.randn(values.shape, generator=generator) / values.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    return model


def opened_by_transformers(folder: Path) -> Any:
    """The model directory as `transformers` reads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def tokenizer_by_transformers(folder: Path) -> Any:
    """The directory's tokenizer as `transformers` reads it."""
    return transformers.AutoTokenizer.from_pretrained(folder)
