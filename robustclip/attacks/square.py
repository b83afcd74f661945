"""Square Attack (Andriushchenko et al. 2020): random search that asks for logits only, the probe for gradients that lie."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.attacks.base import Example, Trace
from robustclip.attacks.losses import fools
from robustclip.attacks.pgd import Found, frozen, micro_batches, move, with_restarts
from robustclip.base.draws import Key, uniform
from robustclip.base.dtypes import wide
from robustclip.base.ranges import COUNT, NATURAL, check_fields
from robustclip.base.threat import Ball, l2
from robustclip.models.adaptive import meeting

P_INIT = 0.8
SCHEDULE = 10_000  # queries
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of SCHEDULE: after each the share of changed pixels is halved
BLOCK = 500  # steps whose random numbers are drawn at once: one draw per step and image would cost more than the model
Ask = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # images [B,3,H,W] and their places [B] -> margins, misclassified
Window = tuple[Tensor, Tensor, Tensor, Tensor]  # index of one square per image of [B,C,H,W]

# One row of random numbers per image and step: the corners of two windows, the orientation of the bump, a sign per channel.
FIRST, SECOND, TURN, SIGNS = slice(0, 2), slice(2, 4), 4, slice(5, None)


def window_side(step: int, schedule: int, height: int, width: int, norm: str) -> int:
    """Return the side of the window at a step of the search: the published schedule of SCHEDULE queries, made `schedule` queries long."""
    at = step * SCHEDULE // schedule
    side = round(math.sqrt(P_INIT / 2 ** sum(at > after for after in HALVINGS) * height * width))
    if norm == "L2":
        side = max(side, 3) | 1  # odd, for a bump with a middle
    return min(max(side, 1), height, width)


@cache
def bump(side: int) -> Tensor:
    """Return the published eta [side,side] of unit norm: two halves of opposite sign, each a pyramid that falls off from its middle."""

    def pyramid(height: int, width: int) -> Tensor:
        levels = 1 / torch.arange(1, max(height, width) // 2 + 2) ** 2
        rows, columns = ((torch.arange(n) - n // 2).abs() for n in (height, width))
        heights = levels.flip(0).cumsum(0).flip(0)[torch.maximum(rows[:, None], columns)]
        return heights / heights.norm()

    both = torch.cat([pyramid(side // 2, side), -pyramid(side - side // 2, side)])
    return both / both.norm()


def signs(uniform: Tensor) -> Tensor:
    """Return -1 or 1 for each uniform number."""
    return torch.where(uniform < 0.5, -1.0, 1.0)


def window(images: Tensor, corner: Tensor, side: int) -> Window:
    """Return the index of one square per image [B,C,H,W], its corner uniform over all places, by uniform numbers [B,2]."""
    last = torch.tensor(images.shape[-2:], device=images.device) - side
    top_left = torch.minimum((corner * (last + 1)).long(), last)
    rows, columns = (top_left[:, :, None] + torch.arange(side, device=images.device)).unbind(1)
    image, channel = (torch.arange(n, device=images.device) for n in images.shape[:2])
    return image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]


def first_delta(images: Tensor, ball: Ball, uniform: Tensor) -> Tensor:
    """Return the first perturbations by uniform numbers [B,C+1,H,W]: vertical stripes (Linf), or bumps side by side (L2)."""
    height, width = images.shape[-2:]
    if ball.norm == "Linf":
        return ball.radius * signs(uniform[:, :-1, :1]).to(images).expand_as(images)
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    one = bump(side).to(images)
    turned = torch.where(uniform[:, -1:, :rows, :columns, None, None] < 0.5, one.T, one)
    tiles = turned * signs(uniform[:, :-1, :rows, :columns, None, None])
    tiled = tiles.transpose(3, 4).reshape(*images.shape[:2], rows * side, columns * side)
    down, right = height - rows * side, width - columns * side
    return scaled(F.pad(tiled, (right // 2, right - right // 2, down // 2, down - down // 2)), ball)


def next_delta(delta: Tensor, ball: Ball, uniform: Tensor, side: int) -> Tensor:
    """Return the next proposal from the best perturbations [B,C,H,W] by uniform numbers [B,5+C]: Algorithm 2 (Linf) or 3 (L2)."""
    new, sign = window(delta, uniform[:, FIRST], side), signs(uniform[:, SIGNS])[:, :, None, None].to(delta)
    proposed = delta.clone()
    if ball.norm == "Linf":
        proposed[new] = ball.radius * sign.expand_as(delta[new])
        return proposed
    emptied = window(delta, uniform[:, SECOND], side)
    touched = torch.zeros_like(delta)
    touched[new], touched[emptied] = delta[new], delta[emptied]
    unused = (ball.radius**2 - l2(delta) ** 2).clamp(min=0) / delta.shape[1]
    available = (unused + touched.square().sum((2, 3), keepdim=True)).sqrt()
    one = bump(side).to(delta)
    turned = torch.where(uniform[:, TURN, None, None, None] < 0.5, one.T, one)
    mixed = unit(delta[new]) + sign * turned
    proposed[emptied] = 0
    proposed[new] = unit(mixed) * available
    return scaled(proposed, ball)


def unit(squares: Tensor) -> Tensor:
    """Return squares [B,C,S,S] with norm 1 in every channel; zeros stay zero."""
    return squares / squares.square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-12)


def scaled(delta: Tensor, ball: Ball) -> Tensor:
    """Return delta [B,C,H,W] with the radius of the ball as L2 norm: what clamping to [0,1] lost is used again."""
    return delta * (ball.radius / l2(delta).clamp(min=1e-12))


def drawn(keys: Sequence[Key], places: Tensor, *shape: int, first: int = 0) -> Tensor:
    """Return uniform numbers [N,*shape]: those at `places` from their own images' streams, from the number `first` on, the others 0."""
    found = torch.zeros(len(keys), *shape, device=places.device)
    found[places] = uniform([keys[place] for place in places.tolist()], *shape, first=first, device=places.device)
    return found


def square(ask: Ask, images: Tensor, ball: Ball, *, queries: int, schedule: int, keys: Sequence[Key], size: int, todo: Tensor) -> Found:
    """Return the best images of the random search and its trace for the images `todo` [N], working on `size` of them at a time.

    Step 0 asks for the clean image, step 1 for the first perturbation, the others for one window each; an image stops at its first success.
    """
    best, loss, drew = images.clone(), torch.zeros_like(images[:, 0, 0, 0]), images
    loss_start, last, forwards = loss, loss.clone(), torch.zeros_like(todo, dtype=torch.long)
    success = torch.full_like(forwards, -1)
    channels, height, width = images.shape[1:]
    for step in range(queries + 1 if ball.radius else 1):
        places = (todo & (success < 0)).nonzero()[:, 0]
        if not len(places):
            break
        if step == 1:
            drew = drawn([(*key, "first") for key in keys], places, channels + 1, height, width)
        elif step > 1 and (step - 2) % BLOCK == 0:
            drew = drawn(keys, places, BLOCK, 5 + channels, first=(step - 2) * (5 + channels))
        side = window_side(step - 2, schedule, height, width, ball.norm)
        # Proposals are made in micro-batches too: a norm may round differently in a batch of another size.
        for part, padded in micro_batches(places, size):
            proposed = clean = images[padded]
            if step == 1:
                proposed = move(clean, first_delta(clean, ball, drew[padded]), ball)
            elif step > 1:
                proposed = move(clean, next_delta(best[padded] - clean, ball, drew[padded, (step - 2) % BLOCK], side), ball)
            margin, fooled = (answer[: len(part)] for answer in ask(proposed, padded))
            better = fooled | (margin > loss[part]) | (step <= 1)  # the search starts from the first perturbation, better or not
            best[part[better]], loss[part[better]] = proposed[: len(part)][better], margin[better]
            last[part], success[part[fooled]] = margin, step
            forwards[part] += 1
        loss_start = loss.clone() if step == 0 else loss_start
    unknown = torch.full_like(loss, torch.nan)  # no gradient was asked for
    return best, Trace(loss_start, loss, last, success, unknown, unknown, forwards)


def margins(classifier: nn.Module, labels: Tensor, ids: list[str]) -> Ask:
    """Return what scores images without a gradient: highest wrong logit minus the label's, and whether they are misclassified."""

    def ask(images: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits, label = wide(meeting(classifier, ids, places)(images)), labels[places, None]
        wrong = logits.scatter(1, label, -torch.inf).amax(1)
        return wrong - logits.gather(1, label)[:, 0], fools(logits, label[:, 0])

    return ask


@dataclass(frozen=True)
class Square:
    """Square Attack in Linf or L2 with the margin loss: each image is shown at most `queries` times perturbed, and once clean.

    The published schedule of window sizes (p = 0.8) is scaled to `queries`, unless `rescale` is off: the original's AutoAttack breaks off
    the schedule of 10,000 queries, which is weaker. Positions and signs are drawn per image, as in Algorithm 1, and
    reach the image's last row and column. A trace has no shares of bad gradients (nan).
    """

    queries: int = 5000
    restarts: int = 1
    rescale: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "Square: ", queries=NATURAL, restarts=COUNT)

    @property
    def name(self) -> str:
        return f"square-{self.queries}" + (f"x{self.restarts}" if self.restarts > 1 else "")

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, ids: list[str], ball: Ball, seed: int, micro_batch: int | None = None
    ) -> Example:
        ask, size = margins(classifier, labels, ids), micro_batch or len(images)

        def run(restart: int, todo: Tensor) -> Found:
            keys: list[Key] = [(seed, "square", restart, id_) for id_ in ids]
            schedule = self.queries if self.rescale else SCHEDULE
            return square(ask, images, ball, queries=self.queries, schedule=schedule, keys=keys, size=size, todo=todo)

        with frozen(classifier):
            adversarial, trace = with_restarts(run, self.restarts, images)
        return Example(adversarial, trace=trace)
