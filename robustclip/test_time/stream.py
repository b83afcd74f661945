"""Prompts that live longer than one image: what a stream does to them, and what an attacker of earlier images does to later ones (A7)."""

from collections.abc import Callable

import torch
from torch import Tensor

from robustclip.attacks.base import Objective, Scored
from robustclip.attacks.losses import fools
from robustclip.attacks.pgd import pgd, random_start
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.models.adaptive import twice_differentiable
from robustclip.test_time.tuning import Adapted, PromptTuner, State, most_confident


class Stream:
    """A tuner that meets images one by one and puts its prompt back only after every `reset` of them (None: never).

    With `reset` 1 it is the tuner itself. Above, an image's answer depends on those before it: no per-image number, no batches. Prompts and
    optimiser are put back together. Raises UserError for a reset below 1.
    """

    def __init__(self, tuner: PromptTuner, reset: int | None):
        if reset is not None and reset < 1:
            raise UserError(f"reset is {reset}: a prompt is put back after 1 image or more, or never (None)")
        self.tuner, self.reset = tuner, reset
        self.seen = 0
        self._restart()

    def _restart(self) -> None:
        self.state: State = {name: p.detach()[None] for name, p in self.tuner.prompt.state().items()}
        self.moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.state.items()}
        self.steps = 0

    def _before(self) -> None:
        """Put the prompt back if the next image is the first of its turn."""
        if self.reset is not None and self.seen % self.reset == 0:
            self._restart()

    def __call__(self, image: Tensor, id_: str) -> Tensor:
        """Return the logits [1,K] of the next image [1,3,H,W]."""
        self._before()
        self.state, self.moments = self.after(image, id_, False)
        self.steps += self.tuner.settings.steps
        self.seen += 1
        return self.answer(image, id_, self.state)

    def after(self, image: Tensor, id_: str, through: bool) -> tuple[State, dict[str, tuple[Tensor, Tensor]]]:
        """Return the state and AdamW's moments after an image [1,3,H,W], with a graph to it if `through`; nothing is kept."""
        tuner, state, moments = self.tuner, self.state, self.moments
        with torch.enable_grad(), twice_differentiable(through):
            views = tuner.views(image if through else image.detach(), tuner.of([id_]).keys)
            with torch.no_grad():
                seen, said = tuner.prompt.layers(state)
                kept = most_confident(tuner.look(views, seen, tuner.classes(said)).logits, tuner.settings.kept)
            views = views[:, kept[0]]
            for step in range(1, tuner.settings.steps + 1):
                gradients = tuner.gradients(views, state, through)
                state, moments = tuner.stepped(state, moments, gradients, self.steps + step, through)
        return state, moments

    def answer(self, image: Tensor, id_: str, state: State) -> Tensor:
        """Return the logits [1,K] of an image under a state."""
        seen, said = self.tuner.prompt.layers(state)
        with torch.set_grad_enabled(any(p.requires_grad for p in state.values())):
            return self.tuner.answer(image, self.tuner.of([id_]).keys, Adapted(seen, self.tuner.classes(said)))

    def poison(self, image: Tensor, victim: Tensor, label: Tensor, ids: tuple[str, str], ball: Ball, steps: int, seed: int) -> Tensor:
        """Return the next image [1,3,H,W], moved in a ball so that the clean one after it, the `victim`, is misread: level A7.

        PGD through what the stream will have learned from the one when it meets the other; ids are those of both.
        """
        self._before()
        start = random_start(ball, image, [ids[0]], seed, "poison") if ball.radius else None
        return pgd(self._harm(victim, label, ids), image, ball, steps=steps, alpha=0.25, start=start)

    def _harm(self, victim: Tensor, label: Tensor, ids: tuple[str, str]) -> Objective:
        """Return the cross-entropy of the victim once the stream has seen an image, and whether it is misread."""

        def objective(image: Tensor) -> Scored:
            logits = self.answer(victim, ids[1], self.after(image, ids[0], True)[0])
            return Scored(torch.nn.functional.cross_entropy(logits, label, reduction="none"), fools(logits, label))

        return objective


def run(
    tuner: PromptTuner,
    reset: int | None,
    images: Tensor,
    ids: list[str],
    before: Callable[[Stream, int, Tensor], Tensor] = lambda stream, i, image: image,
) -> Tensor:
    """Return the predicted classes [N] of images in their order; `before` may change the i-th image when its turn comes."""
    stream = Stream(tuner, reset)
    predictions = []
    for i, id_ in enumerate(ids):
        image = before(stream, i, images[i : i + 1])
        predictions.append(int(stream(image, id_).argmax(1)))
    return torch.tensor(predictions)
