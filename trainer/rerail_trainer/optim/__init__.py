"""Optimizers, and the learning rate as a function of the step."""

from .adamw import AdamW, learning_rate

__all__ = ["AdamW", "learning_rate"]
