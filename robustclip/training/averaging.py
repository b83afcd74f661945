"""The running average of the weights that learn, and weights put in each other's place."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The running average of parameters, `values`: a <- decay a + (1 - decay) w after each step; none, [], with a decay of 0."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        self.parameters, self.decay = parameters, decay
        self.values = [p.detach().clone() for p in parameters] if decay else []

    def update(self) -> None:
        """Take the weights of a step in."""
        for average, p in zip(self.values, self.parameters):
            average.mul_(self.decay).add_(p.detach(), alpha=1 - self.decay)

    def put(self) -> None:
        """Put the average in the place of the weights, for good; without one they stay."""
        if self.values:
            set_all(self.parameters, self.values)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the place of the weights, and them back afterwards."""
        weights = [p.detach().clone() for p in self.parameters]
        self.put()
        try:
            yield
        finally:
            set_all(self.parameters, weights)


def set_all(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into tensors, in place; raises ValueError where there are not as many."""
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of tensors on the CPU, without their graph."""
    return [tensor.detach().cpu().clone() for tensor in tensors]
