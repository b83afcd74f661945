"""The gradients of a step, added up over all workers, and the guard against what is not finite in them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from robustclip.base.errors import UserError
from robustclip.training.pairing import World

SHOWN_IDS = 8  # of a batch that stopped a run


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

    Raises NotFinite, the gradients as they were, with the number of the step and the images of this worker in it (`ids`).
    """
    names, gradients = sorted(parts), [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients] + [parts[name].to(gradients[0]).view(1) for name in names])
    world.add(flat)
    if not bool(torch.isfinite(flat).all()):
        raise NotFinite(step + 1, list(ids))
    for g, summed in zip(gradients, flat.split([g.numel() for g in gradients] + [len(names)])[:-1], strict=True):
        g.copy_(summed.view_as(g))
    return dict(zip(names, flat[len(flat) - len(names) :].tolist(), strict=True))
