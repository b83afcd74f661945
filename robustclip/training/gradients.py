"""The gradients of a step, added up over all workers, and the guard against what is not finite in them."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from robustclip.base.errors import UserError
from robustclip.training.pairing import World

SHOWN_IDS = 8  # of a batch that stopped a run
BUCKET = 1 << 23  # numbers that are sent together: 32 MiB of fp32 are copied at a time, not all gradients of a tower


class NotFinite(UserError):
    """The loss or a gradient is NaN or infinite, at a `step` (the first is 1), of which a worker saw the images `ids`."""

    def __init__(self, step: int, ids: Sequence[str]):
        super().__init__(step, ids)
        self.step, self.ids = step, ids

    def __str__(self) -> str:
        more = f" and {len(self.ids) - SHOWN_IDS} more" if len(self.ids) > SHOWN_IDS else ""
        return (
            f"step {self.step}: the loss or a gradient is not finite; lower optim.lr, or look at the images of this step: "
            f"{', '.join(self.ids[:SHOWN_IDS])}{more}"
        )

    def called(self, names: Mapping[str, str]) -> "NotFinite":
        """Return the same with the images by the names that users know them by; `names` has them by what the stream calls them."""
        return NotFinite(self.step, [names.get(id_, id_) for id_ in self.ids])


def add_up(
    parameters: Sequence[nn.Parameter], parts: Mapping[str, Tensor], world: World, step: int, ids: Sequence[str]
) -> dict[str, float]:
    """Sum the parameters' gradients over all workers, in place, and the parts of the loss, which are returned by name.

    Raises NotFinite, with the number of the step and the images of this worker in it (`ids`), before anything steps.
    """
    names, gradients = sorted(parts), [p.grad for p in parameters if p.grad is not None]
    losses = torch.stack([parts[name].to(gradients[0]).view(()) for name in names])
    if world.workers > 1:
        for bucket in buckets([*gradients, losses]):
            add_bucket(bucket, world)
    norm = get_total_norm([*gradients, losses])  # not finite where a number is not, and, unlike them, where it is too large itself
    if not bool(torch.isfinite(norm)) and not all(bool(torch.isfinite(each).all()) for each in (*gradients, losses)):
        raise NotFinite(step + 1, list(ids))
    return dict(zip(names, losses.tolist(), strict=True))


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors in their order, together up to BUCKET numbers; one that is larger comes alone."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    yield bucket


def add_bucket(bucket: Sequence[Tensor], world: World) -> None:
    """Sum the tensors of a bucket over all workers, in place."""
    if len(bucket) == 1 and bucket[0].is_contiguous():
        world.add(bucket[0])
        return
    flat = torch.cat([tensor.flatten() for tensor in bucket])
    world.add(flat)
    for tensor, summed in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(summed.view_as(tensor))
