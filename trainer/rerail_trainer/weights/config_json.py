"""config.json <-> ModelConfig, by the tables of `architectures`. Torch-free.

Both forms of RoPE are read (transformers 4: rope_theta and rope_scaling; 5: rope_parameters); the older one
is written, which both versions read. What is not computed here is refused by its name, never passed over.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rerail_trainer.architecture import check_model, rope_scaling_of
from rerail_trainer.config import ModelConfig
from rerail_trainer.failures import BadConfig

from .architectures import (
    ARCHITECTURES,
    DENSE_LIST,
    HARMLESS,
    HEAD_NORM,
    SHARED_COUNT,
    SPARSE_STEP,
    Architecture,
    names_read,
)

CONFIG_FILE = "config.json"
LAYER_TYPES, FULL_ATTENTION = "layer_types", "full_attention"
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")

Tree = dict[str, Any]


def read_config(folder: str) -> tuple[Architecture, ModelConfig]:
    """What the config.json in `folder` describes. BadConfig names the key that cannot be computed here."""
    path = Path(folder, CONFIG_FILE)
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadConfig(f"{path} is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise BadConfig(f"{path} is no JSON object")
    try:
        architecture = named(tree)
        return architecture, model_of(architecture, tree)
    except BadConfig as refusal:
        raise BadConfig(f"{path}: {refusal.message}") from refusal


def named(tree: Tree) -> Architecture:
    """The architecture that `tree` says it is. BadConfig, with those that are read, for any other."""
    names = tree.get("architectures") or []
    for candidate in ARCHITECTURES:
        if candidate.name in names or (not names and candidate.model_type == tree.get("model_type")):
            return candidate
    found = ", ".join(names) or tree.get("model_type") or "without an architecture"
    raise BadConfig(f"the model is {found}; read are {names_read()}")


def model_of(architecture: Architecture, tree: Tree) -> ModelConfig:
    """The settings that `tree` gives under `architecture`. BadConfig for what is not computed here."""
    _refuse_foreign_keys(architecture, tree)
    fixed = {name: value for name, value in architecture.settings.items() if not isinstance(value, tuple)}
    settings: Tree = {**fixed, **architecture.defaults}
    for key, name in architecture.keys.items():
        if tree.get(key) is not None:
            settings[name] = _typed(key, name, tree[key])
    for name in _owed(architecture):
        if name not in settings:
            keys = [key for key, setting in architecture.keys.items() if setting == name]
            raise BadConfig(f"{' or '.join(keys)} is missing")
    settings.setdefault("kv_heads", settings["heads"])
    settings.setdefault("head_dim", settings["dim"] // settings["heads"])
    settings.setdefault("ffn", settings.get("expert_ffn"))
    settings |= _rope(architecture, tree)
    settings |= _special(architecture, tree, settings)
    config = ModelConfig(**settings)
    check_model(config)
    return config


def architecture_of(config: ModelConfig) -> Architecture:
    """The first architecture that computes what `config` says.

    BadConfig names the settings in which the nearest one differs.
    """
    kin = [candidate for candidate in ARCHITECTURES if candidate.mixture == (config.experts > 0)]
    differences = [(_differences(config, candidate), candidate) for candidate in kin]
    wrong, nearest = min(differences, key=lambda entry: len(entry[0]))
    if wrong:
        raise BadConfig(
            f"no known architecture of the Hugging Face layout computes this model: the nearest, "
            f"{nearest.name}, is not possible with {', '.join(wrong)}"
        )
    return nearest


def config_json(config: ModelConfig, architecture: Architecture) -> Tree:
    """The keys of config.json for `config`, without token ids and dtype. They read back as `config`, but
    for settings that matter in training alone.
    """
    settings = asdict(replace(config, expert_ffn=config.expert_ffn or config.ffn))
    tree: Tree = {"architectures": [architecture.name], "model_type": architecture.model_type}
    written = set()
    for key, name in architecture.keys.items():
        if name not in written:
            written.add(name)
            tree[key] = settings[name]
    tree |= {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0}
    tree |= {key: values[0] for key, values in architecture.fixed.items()}
    tree |= {"rope_theta": config.rope_theta, "rope_scaling": _scaling_written(config)}
    if architecture.rotary != 1.0:
        tree["partial_rotary_factor"] = 1.0
    if DENSE_LIST in architecture.special:
        tree |= {DENSE_LIST: list(range(config.dense_layers)), SPARSE_STEP: 1}
    if SHARED_COUNT in architecture.special:
        tree[SHARED_COUNT] = config.shared_ffn // settings["expert_ffn"]
    if HEAD_NORM in architecture.special:
        tree[HEAD_NORM] = config.qk_norm == "head"
    return tree


def _owed(architecture: Architecture) -> list[str]:
    """Settings that config.json must give."""
    names = ["layers", "dim", "heads", "vocab", "seq_len"]
    names += ["ffn"] if "ffn" in architecture.keys.values() else []
    return names + (["experts", "experts_per_token", "expert_ffn"] if architecture.mixture else [])


def _refuse_foreign_keys(architecture: Architecture, tree: Tree) -> None:
    fixed = architecture.fixed_values()
    for key, values in fixed.items():
        given = tree.get(key)
        if given is not None and given not in values:
            raise BadConfig(f"{key}={given} is not computed here, only {key}={json.dumps(values[0])}")
    known = {*architecture.keys, *fixed, *HARMLESS, *architecture.special, *ROPE_KEYS, LAYER_TYPES}
    for key, given in tree.items():
        if key not in known and not key.startswith("_") and given is not None:
            raise BadConfig(
                f"{key} is no key of {architecture.name} that is known here, and may change what the model "
                "computes; take it out if it does not"
            )
    others = set(tree.get(LAYER_TYPES) or [FULL_ATTENTION]) - {FULL_ATTENTION}
    if others:
        raise BadConfig(f"{LAYER_TYPES} names {sorted(others)[0]}; only {FULL_ATTENTION} is computed here")


def _typed(key: str, name: str, value: Any) -> Any:
    kind = type(getattr(ModelConfig(), name))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise BadConfig(f"{key}={json.dumps(value)} is not of the kind {kind.__name__}")
    return value


def _rope(architecture: Architecture, tree: Tree) -> Tree:
    """rope_theta and rope_scaling, from either form."""
    newer = tree.get("rope_parameters") or {}
    scaling = newer or tree.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    share = newer.get("partial_rotary_factor", tree.get("partial_rotary_factor", architecture.rotary))
    if share != 1.0:
        raise BadConfig(f"partial_rotary_factor={share} is not computed here, only 1.0")
    theta: Any = newer.get("rope_theta", tree.get("rope_theta", 10_000.0))
    settings: Tree = {"rope_theta": float(theta)}
    if any(isinstance(value, dict) for value in scaling.values()):
        raise BadConfig("rope_parameters differ between layers, which is not computed here")
    if kind == "default":
        return settings
    if kind != "llama3":
        raise BadConfig(f"RoPE of the type {kind} is not computed here, only default and llama3")
    missing = [key for key in LLAMA3_KEYS if key not in scaling]
    if missing:
        raise BadConfig(f"RoPE of the type llama3 without {missing[0]}")
    return {
        **settings,
        "rope_scaling": ":".join(["llama3", *(f"{scaling[key]:.12g}" for key in LLAMA3_KEYS)]),
    }


def _scaling_written(config: ModelConfig) -> Tree | None:
    scaling = rope_scaling_of(config)
    if scaling is None:
        return None
    numbers = (scaling.factor, scaling.low, scaling.high, int(scaling.original))
    return {"rope_type": "llama3", **dict(zip(LLAMA3_KEYS, numbers, strict=True))}


def _special(architecture: Architecture, tree: Tree, settings: Tree) -> Tree:
    found: Tree = {}
    if DENSE_LIST in architecture.special:
        listed, step = tree.get(DENSE_LIST) or [], tree.get(SPARSE_STEP, 1)
        dense = [n for n in range(settings["layers"]) if n in listed or (n + 1) % step]
        if dense != list(range(len(dense))):
            raise BadConfig(
                f"{DENSE_LIST} and {SPARSE_STEP} make block {dense[-1]} dense after one with experts; here "
                "dense blocks come first"
            )
        found["dense_layers"] = len(dense)
    if SHARED_COUNT in architecture.special:
        found["shared_ffn"] = tree.get(SHARED_COUNT, 1) * settings["expert_ffn"]
    if HEAD_NORM in architecture.special:
        found["qk_norm"] = "head" if tree.get(HEAD_NORM) else "none"
    return found


def _differences(config: ModelConfig, architecture: Architecture) -> list[str]:
    """Settings that `architecture` cannot express, as a person writes them."""
    wrong = []
    for name, possible in architecture.settings.items():
        allowed = possible if isinstance(possible, tuple) else (possible,)
        if getattr(config, name) not in allowed:
            wrong.append(f"model.{name}={getattr(config, name)}")
    fits = {
        "any": True,
        "divide": config.dim % config.heads == 0,
        "fill": config.dim == config.heads * config.head_dim,
    }
    if not fits[architecture.heads]:
        wrong.append(
            f"model.heads={config.heads}, model.head_dim={config.head_dim} at model.dim={config.dim}"
        )
    width = config.expert_ffn or config.ffn
    if SHARED_COUNT in architecture.special and (not config.shared_ffn or config.shared_ffn % width):
        wrong.append(f"model.shared_ffn={config.shared_ffn} at model.expert_ffn={width}")
    return wrong
