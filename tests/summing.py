"""One worker of two in a test: what it hands to the sum over workers is heard, or added to, at once."""

from collections.abc import Callable

from torch import Tensor

from robustclip.training.pairing import World


def summed(add: Callable[[Tensor], object], rank: int = 0) -> World:
    """Return the place of a worker of two whose tensors are summed by `add`, in place."""

    def begin(tensor: Tensor) -> Callable[[], object]:
        add(tensor)
        return lambda: None

    return World(rank, 2, begin)


def heard(sent: list[Tensor]) -> World:
    """Return the place of a worker of two whose tensors, as they are, are kept in a list."""
    return summed(lambda tensor: sent.append(tensor.clone()))
