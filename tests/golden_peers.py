"""FAP and FARE beside their published codes: the recipes' own learners, a step at a time, from the starts of those codes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from golden_case import Case, Method
from torch import Tensor

from robustclip.attacks.base import Example
from robustclip.base.threat import Ball
from robustclip.defenses import Batch, TeCoA
from robustclip.defenses.fare import original_features
from robustclip.training import inner_attack, optimiser
from robustclip.training.config import Config, Optim
from robustclip.training.learner import Learner
from robustclip.training.optimiser import lr_at
from robustclip.training.recipes import RECIPES

Found = dict[str, Tensor]  # by the name of an array, or of a parameter


class Watched(Learner):
    """A learner in float64 that keeps what its last step did: what the attack added (in 1/255), gradients, and the weights before."""

    def __init__(self, case: Case, config: Config, steps: int):
        super().__init__(config, case.model(), case.settings["class_names"], config.templates or (), steps, dtype=torch.float64)
        named = (self.model.prompt or self.model.clip).named_parameters()
        names = {id(p): name.removeprefix("visual.") for name, p in named}
        self.learn = {names[id(p)]: p for p in self.parameters}
        self.added: list[Tensor] = []
        self.gradients: Found = {}
        self.before: Found = {}
        self.take, self.optimiser.take = self.optimiser.take, self._kept

    def attacked(self, batch: Batch, seen: Callable[[Tensor], None] = lambda images: None) -> Example:
        """Attack as any learner does."""
        iterates: list[Tensor] = []
        found = super().attacked(batch, iterates.append)
        self.added = [255 * (images - batch.images) for images in (*iterates, found.images)]
        return found

    def now(self) -> Found:
        """Return copies of what learns."""
        return {name: p.detach().clone() for name, p in self.learn.items()}

    def _kept(self, step: int) -> float:
        self.before, self.gradients = self.now(), {name: p.grad.clone() for name, p in self.learn.items() if p.grad is not None}
        return self.take(step)

    def trains(self, pixels: Tensor, labels: Tensor, noise: Tensor) -> dict[str, float]:
        """Take a step whose attack starts from noise, a share of eps."""

        def start(ball: Ball, images: Tensor, ids: list[str], *key: str | int) -> Tensor:
            return noise * ball.radius

        with patch.object(inner_attack, "random_start", start):
            self.accumulate(pixels, labels, [f"image {i}" for i in range(len(labels))])
        return self.update()


def of(optim: Optim, batch: int, **changes: Any) -> Optim:
    """Return an optimiser's settings for a batch of another size, with other changes."""
    return replace(optim, batch=batch, micro_batch=batch, **changes)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def numbers(*values: float) -> Tensor:
    return torch.stack([number(value) for value in values])


# --- FAP, AdvMaPLe and AdvVLP -------------------------------------------------------------------------------------------

PARTS = {"context": "context", "visual": "visual", "text": "text", "first.weight": "weight", "first.bias": "bias"}
PARTS |= {"back.weight": "weight_back", "back.bias": "bias_back"}


def fap(case: Case) -> Found:
    """Return what the learners of the three recipes make of the images."""
    return {f"{name}.{part}": value for name in ("fap", "advmaple", "advvlp") for part, value in prompted(case, name)}


def prompted(case: Case, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield what one of these learners makes of the images: its words, its logits, and what each step does."""
    config = RECIPES[f"{name}-b32"].config
    design = "visual to text" if name == "advmaple" else config.trainable.design  # as that code has it
    pixels, labels, steps = case.arrays["pixels"], case.arrays["labels"], case.settings["steps"][name]
    trainable = replace(config.trainable, design=design, depth=case.settings["depth"])
    config = replace(config, trainable=trainable, optim=of(config.optim, len(labels), warmup=0, schedule="constant"))
    learner = Watched(case, config, steps)
    yield "prompt_0.context", learner.now()["context"]
    starts = {own: case.arrays[f"{name}.prompt_0.{part}"] for part, own in PARTS.items() if own in learner.learn}
    learner.restore({**learner.state(), "learned": [starts[own].view_as(p) for own, p in learner.learn.items()]})
    yield "clean_logits", learner.student(pixels.permute(0, 3, 1, 2).double() / 255)
    for step in range(steps):
        took = learner.trains(pixels, labels, case.arrays["noise"][step])
        clean, attacked = took.get("loss/fap_clean", 0.0), took.get("loss/tecoa", 0.0)
        attacked = took["loss/fap_kl"] / config.defense.lam if name == "fap" else attacked
        yield f"step_{step + 1}.adversarial", learner.added[-1]
        yield f"step_{step + 1}.losses", numbers(took["loss"], clean, attacked)
        for kind, values in {"gradient": learner.gradients, "prompt": learner.now()}.items():
            for part, own in PARTS.items():
                if own in values:
                    yield f"step_{step + 1}.{kind}.{part}", values[own].view_as(starts[own])


# --- FARE, and TeCoA by the same code -----------------------------------------------------------------------------------


def fare(case: Case) -> Found:
    """Return what the learner of FARE's recipe makes of two batches, and with TeCoA's loss of the first."""
    config, said, steps = RECIPES["fare-b32"].config, case.settings, case.settings["schedule"]["steps"]
    optim = of(config.optim, case.arrays["labels"].shape[1], lr=said["optimiser"]["lr"], warmup=said["schedule"]["warmup"])
    config = replace(config, templates=(said["template"],), optim=optim)
    learner = Watched(case, config, steps)
    clean = Batch(case.arrays["images"][0], case.arrays["labels"][0], ["a", "b", "c"])
    found = {
        "schedule": numbers(*(lr_at(t, optim, steps) for t in range(steps + 1))),
        "class_embeddings": learner.student.class_embeddings,
        "fare.original_features": original_features(learner.roles, clean),
    }
    for name, each in {"fare": learner, "tecoa": Watched(case, replace(config, defense=TeCoA()), steps)}.items():
        for step in range(said["steps"][name]):
            found |= {f"{name}.{part}": value for part, value in tuned(case, each, step)}
    return {name: value for name, value in found.items() if name in case.tolerance}  # it has some weights of all


def tuned(case: Case, learner: Watched, step: int) -> Iterator[tuple[str, Tensor]]:
    """Yield what a step of a learner does, the first one at the peak of its rate as that code takes it."""

    def late(t: int, optim: Optim, steps: int) -> float:
        return lr_at(t, optim, steps) if t else optim.lr

    pixels = 255 * case.arrays["images"][step].permute(0, 2, 3, 1)
    with patch.object(optimiser, "lr_at", late):
        took = learner.trains(pixels, case.arrays["labels"][step], case.arrays["noise"][step])
    if step == 0:
        yield "iterates", torch.stack(learner.added)
    now, here = learner.now(), f"step_{step + 1}"
    moved = {name: value - learner.before[name] for name, value in now.items()}
    yield f"{here}.adversarial", learner.added[-1]
    yield f"{here}.loss", number(took["loss"])
    for kind, values in {"gradient": learner.gradients, "change": moved}.items():
        yield f"{here}.{kind}_norms", torch.stack([values[name].norm() for name in case.settings["parameters"]])
    for kind, values in {"gradient": learner.gradients, "after": now}.items():
        for name, value in values.items():
            yield f"{here}.{kind}.{name}", value


METHODS = [
    Method(
        "fap",
        "FAP, AdvMaPLe and AdvVLP",
        fap,
        equal="logits, then 2 training steps (1 of each baseline): attacked images, both parts of the loss, gradients, prompt tokens",
        besides=[
            "The rate grows and falls by the step; there it is constant through an epoch.",
            "AdvMaPLe's recipe makes image tokens of the text's, as its paper says; equal is the other design, which its code has.",
            "Class names stand in the template; the trainers of FAP and AdvMaPLe leave its braces and full stop in every prompt.",
        ],
    ),
    Method(
        "fare",
        "FARE, and TeCoA by its code",
        fare,
        equal="2 training steps (1 of TeCoA): every iterate of the attack, loss, gradients, weights; the schedule's rates",
        besides=[
            "The first step has the first rate of the warm-up; there it has the peak, so the tests give it that.",
            "A start outside of [0,1] is clamped before the first step; there after it.",
        ],
    ),
]
