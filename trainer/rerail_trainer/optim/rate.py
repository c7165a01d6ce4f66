"""The learning rate: a function of the step alone, so that no checkpoint has to hold it."""

import math

from rerail_trainer.config import OptimConfig


def learning_rate(step: int, config: OptimConfig, horizon: int) -> float:
    """Rate of step index `step` (from 0): linear warm-up,
    then the schedule down to min_lr_frac at `horizon`.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(horizon - config.warmup_steps, 1)
    done = min((step - config.warmup_steps) / span, 1.0)
    left = 0.5 * (1.0 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1.0 - done
    return config.lr * (config.min_lr_frac + (1.0 - config.min_lr_frac) * left)
