"""The first values of a training, taken from weights that lie somewhere. All ranks together."""

from collections.abc import Callable
from functools import partial

from torch import nn

from rerail_api.contract import ExitCode
from rerail_trainer.checkpoint.tensorfile import Damaged
from rerail_trainer.control import Control
from rerail_trainer.failures import BadConfig, TrainerExit

from .checkpoints import CheckpointSource, committed_steps, located
from .hugging_face import HuggingFaceSource, is_hugging_face
from .source import Source, take_weights


class Beginning:
    """Fills models from the folder `path`. Every method is called by all ranks together."""

    def __init__(self, control: Control, path: str, say: Callable[[str], None]) -> None:
        self._control, self._path, self._say = control, path, say

    def fill(self, model: nn.Module) -> None:
        """Gives every rank's part of `model` the weights at the path: each rank reads only its own.

        A model directory, or the newest step of a checkpoint folder whose bytes are sound; of that the model
        alone, not the optimizer. Raises what one rank refuses on all of them.
        """
        if self._control.first_rank_does(partial(is_hugging_face, self._path)):
            problem = self._taken(model, lambda: HuggingFaceSource(self._path))
        else:
            problem = self._newest_sound(model)
        if problem:
            raise TrainerExit(ExitCode.NO_CHECKPOINT, f"run.init_from={self._path} is damaged: {problem}")

    def _newest_sound(self, model: nn.Module) -> str:
        (storage, _), problem = located(self._path), "no step"
        for manifest in self._control.first_rank_does(lambda: committed_steps(self._path)[1]):
            problem = self._taken(model, partial(CheckpointSource, storage, manifest))
            if not problem:
                break
            self._say(f"{self._path}: step {manifest.step} is damaged ({problem}), trying the one before it")
        return problem

    def _taken(self, model: nn.Module, opened: Callable[[], Source]) -> str:
        """Why some rank found its bytes damaged; empty when the model is filled."""
        refusal = damage = origin = ""
        added = 0
        try:
            source = opened()
            origin, added = source.origin, take_weights(model, source)
        except BadConfig as error:
            refusal = error.message
        except Damaged as error:
            damage = str(error)
        except OSError as error:
            refusal = f"{error.filename or self._path} cannot be read: {error.strerror}"
        answers = self._control.collect((refusal, damage, added))
        for refusal, _, _ in answers:
            if refusal:
                raise BadConfig(f"run.init_from: {refusal}")
        damages = [damage for _, damage, _ in answers if damage]
        if damages:
            return damages[0]
        self._say(f"first weights from {origin}")
        added = max(added for _, _, added in answers)
        if added:
            self._say(
                f"the vocabulary is {added} tokens larger than there: their rows are the mean of all others"
            )
        return ""
