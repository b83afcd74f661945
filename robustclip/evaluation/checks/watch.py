"""Looking over an attack's shoulder: a hook on the classifier sees every pass, whatever the attack says it did."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.attacks.losses import fools
from robustclip.base.precision import reduced


class Watch:
    """What a classifier was asked about images [N,3,H,W] with labels [N]: per image its passes, losses and whether one fooled it.

    A queried image is told by the nearest original, which holds while the ball is small against the distance of two images.
    """

    def __init__(self, images: Tensor, labels: Tensor):
        self.originals, self.labels = images.flatten(1), labels
        self.losses: list[list[float]] = [[] for _ in labels]
        self.fooled = torch.zeros_like(labels, dtype=torch.bool)
        self.dtypes: set[str] = set()
        self.autocast = self.training = False
        self.reduced: str | None = None

    def see(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Note one forward pass; an image that fills up a batch counts once."""
        asked = args[0].detach().flatten(1)
        self.dtypes |= {str(args[0].dtype), str(output.dtype)}
        self.autocast |= torch.is_autocast_enabled(asked.device.type)
        self.reduced = self.reduced or reduced()
        self.training |= any(m.training for m in module.modules())
        place = torch.cdist(asked.float(), self.originals).argmin(1)
        logits = output.detach().float()
        loss, wrong = F.cross_entropy(logits, self.labels[place], reduction="none"), fools(logits, self.labels[place])
        latest = {i: (value, fooled) for i, value, fooled in zip(place.tolist(), loss.tolist(), wrong.tolist())}
        for i, (value, fooled) in latest.items():
            self.losses[i].append(value)
            self.fooled[i] |= fooled

    def see_inside(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note the precision of one layer."""
        self.reduced = self.reduced or reduced()
        if isinstance(output, Tensor) and output.is_floating_point():
            self.dtypes.add(str(output.dtype))

    @property
    def passes(self) -> list[int]:
        """How often each image was asked about."""
        return [len(each) for each in self.losses]


@contextmanager
def watching(classifier: nn.Module, images: Tensor, labels: Tensor) -> Iterator[Watch]:
    """Watch every forward pass of a classifier inside this context."""
    watch = Watch(images, labels)
    handles = [classifier.register_forward_hook(watch.see)]
    handles += [m.register_forward_hook(watch.see_inside) for m in classifier.modules() if not list(m.children())]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def backward_calls(classifier: nn.Module, images: Tensor) -> int:
    """Return how often one forward pass asks autograd for gradients: more than 0 is an optimisation at inference."""
    # Both torch.autograd.grad and Tensor.backward go through it, however the code that calls them imported them.
    engine = torch.autograd._engine_run_backward
    with patch.object(torch.autograd, "_engine_run_backward", side_effect=engine) as called, torch.no_grad():
        classifier(images)
    return called.call_count
