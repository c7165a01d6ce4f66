"""The model that a folder of weights says it is, before any weight is read; and what may be changed of it."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from rerail_trainer.config import ModelConfig
from rerail_trainer.failures import BadConfig

from .config_json import CONFIG_FILE, read_config

FREE = frozenset(
    {"seq_len", "rope_theta", "rope_scaling", "dropout", "balance_loss", "balance_bias", "z_loss"}
)
"""Settings that a training may choose anew for given weights: its windows, the reach of RoPE, and what only
training looks at."""


def declared_model(path: str, checkpoints: str = "") -> ModelConfig:
    """From config.json, or from the manifest of the newest committed step. BadConfig without either.

    checkpoints: folder of the training that began with these weights. Where they are gone, as from the disk
    of a node that was replaced, its own steps say what the model is, and it needs no weights to go on.
    """
    if Path(path, CONFIG_FILE).is_file():
        return read_config(path)[1]
    # Imported here: a manifest is read by modules that import torch, config.json is not.
    from .checkpoints import committed_steps, is_checkpoint, model_of

    for folder in filter(None, (path, checkpoints)):
        if is_checkpoint(folder):
            newest = committed_steps(folder)[1][0]
            return model_of(newest.identity, folder)
    raise BadConfig(f"run.init_from={path} holds neither {CONFIG_FILE} nor a committed checkpoint")


def model_with(stored: ModelConfig, wanted: ModelConfig, named: Collection[str], path: str) -> ModelConfig:
    """`stored`, with those settings of `wanted` that somebody has `named` and that are free to choose.

    A vocabulary may grow, too. BadConfig lists the named settings that contradict the weights.
    """
    changes, conflicts = {}, []
    for name in sorted(named):
        want, have = getattr(wanted, name), getattr(stored, name)
        if name in FREE or (name == "vocab" and want >= have):
            changes[name] = want
        elif want != have:
            conflicts.append(f"model.{name} is {have} there, not {want}")
    if conflicts:
        raise BadConfig(f"run.init_from={path} is another model: {', '.join(conflicts)}")
    return replace(stored, **changes)
