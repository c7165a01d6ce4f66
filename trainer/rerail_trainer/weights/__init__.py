"""Open weights in and out: checkpoint folders and the Hugging Face layout, read and written tensor by tensor.

`architectures` and `config_json` say in tables what each architecture means in our settings (no torch);
`source` is the one form in which weights are read, `hugging_face` and `checkpoints` are its two kinds;
`opening`, `beginning` and `export` use it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .opening import OpenModel, open_model

__all__ = ["OpenModel", "open_model"]


def __getattr__(name: str) -> Any:
    # Not imported above: the configuration reads config.json before torch is there.
    if name in __all__:
        from . import opening

        return getattr(opening, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
