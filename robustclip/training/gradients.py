"""The gradients of a step, added up over all workers, and the guard against what is not finite in them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from robustclip.base.errors import UserError
from robustclip.training.pairing import World

SHOWN_IDS = 8  # of a batch that stopped a run
BUCKET = 1 << 23  # numbers that are sent together: 32 MiB of fp32
AT_ONCE = 4  # buckets on their way: so much is copied, not all gradients of a tower


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


class Sums:
    """Sums the gradients of a step over all workers, a bucket at a time; one that is whole is sent while a backward pass makes the others.

    Buckets go from the last parameter to the first, as gradients come: the same for all workers, whatever comes first to one of them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], world: World):
        self.parameters, self.world = parameters, world
        self.left = deque(buckets(parameters[::-1]))
        self.sent: deque[tuple[Sequence[Tensor], Tensor, Callable[[], object]]] = deque()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send what becomes whole in the backward pass in this context, the last one of a step."""
        whole: set[nn.Parameter] = set()

        def made(parameter: nn.Parameter) -> None:
            whole.add(parameter)
            while self.left and whole.issuperset(self.left[0]):
                self._send(_gradients(self.left.popleft()))

        alone = self.world.workers == 1
        hooks = [each.register_post_accumulate_grad_hook(made) for each in self.parameters if each.requires_grad and not alone]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self, parts: Mapping[str, Tensor], step: int, ids: Sequence[str]) -> dict[str, float]:
        """Wait for all sums, in place, and for those of the parts of the loss, which are returned by name.

        Raises NotFinite, with the number of the step and the images of this worker in it (`ids`), before anything steps.
        """
        names, gradients = sorted(parts), _gradients(self.parameters)
        losses = torch.stack([parts[name].to(gradients[0]).view(()) for name in names])
        if self.world.workers > 1:
            for bucket in (*map(_gradients, self.left), [losses]):
                self._send(bucket)
            while self.sent:
                self._receive()
        norm = get_total_norm([*gradients, losses])  # not finite where a number is not, and, unlike them, where it is too large itself
        if not bool(torch.isfinite(norm)) and not all(bool(torch.isfinite(each).all()) for each in (*gradients, losses)):
            raise NotFinite(step + 1, list(ids))
        return dict(zip(names, losses.tolist(), strict=True))

    def _send(self, bucket: Sequence[Tensor]) -> None:
        if not bucket:
            return
        while len(self.sent) >= AT_ONCE:
            self._receive()
        in_place = len(bucket) == 1 and bucket[0].is_contiguous()
        flat = bucket[0] if in_place else torch.cat([tensor.flatten() for tensor in bucket])
        self.sent.append((bucket, flat, self.world.begin(flat)))

    def _receive(self) -> None:
        bucket, flat, wait = self.sent.popleft()
        wait()
        if flat is bucket[0]:
            return
        for tensor, summed in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
            tensor.copy_(summed.view_as(tensor))


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [each.grad for each in parameters if each.grad is not None]


def buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield parameters in their order, together up to BUCKET numbers; one that is larger comes alone."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(each.numel() for each in bucket) + parameter.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(parameter)
    yield bucket
