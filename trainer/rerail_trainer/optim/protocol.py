"""What the loop and the checkpoint know of an optimizer."""

from typing import Protocol

from torch import Tensor, nn


class Optimizer(Protocol):
    """Changes parameters in place. Its state is there from the start: a tensor per parameter and name, which
    lies over the ranks as the parameter does; a checkpoint saves it as it is.
    """

    state: dict[nn.Parameter, dict[str, Tensor]]

    def step(self, count: int, rate: float, unless: Tensor) -> None:
        """The update number `count` (from 1) with learning rate `rate`; none if the float32 scalar `unless`,
        which lies on the device and is the same on all ranks, is not 0.
        """

    def reset(self) -> None:
        """Forgets everything, as at step 0."""
