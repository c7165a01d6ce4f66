"""From the configuration to an optimizer over a layout."""

from rerail_trainer.config import OptimConfig
from rerail_trainer.parallel.layouts import Layout

from .adamw import AdamW
from .protocol import Optimizer


def optimizer_for(layout: Layout, config: OptimConfig) -> Optimizer:
    """Called by all ranks together."""
    if config.name == "muon":
        from .muon import Muon

        return Muon(layout, config)
    return AdamW(layout.model.parameters(), config)
