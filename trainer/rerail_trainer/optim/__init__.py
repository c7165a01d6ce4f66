"""Optimizers, and the learning rate as a function of the step."""

from .adamw import AdamW
from .choice import optimizer_for
from .protocol import Optimizer
from .rate import learning_rate

__all__ = ["AdamW", "Optimizer", "learning_rate", "optimizer_for"]
