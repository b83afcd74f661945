"""Training of towers beside its published code: TeCoA, PMG-AFT and MMCoA."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from golden_case import Case, Method
from parts import pixels, step
from torch import Tensor

from robustclip.attacks.base import Example
from robustclip.attacks.text.sources import Table
from robustclip.attacks.text.words import Prompt, Scope
from robustclip.base.threat import Ball, ThreatModel
from robustclip.defenses import Batch
from robustclip.training import inner_attack
from robustclip.training.config import Config, InnerAttack
from robustclip.training.learner import Learner
from robustclip.training.optimiser import lr_at
from robustclip.training.recipes import RECIPES

MICRO_BATCH = 3  # half of a step: the two halves must add up to the whole


class Seen(Learner):
    """A learner that keeps the clean and the attacked images of its steps."""

    def __init__(self, case: Case, config: Config):
        super().__init__(config, case.model(), case.settings["class_names"], (), case.settings["steps"], dtype=torch.float64)
        self.order = [dict(self.model.clip.named_parameters())[name] for name in case.settings["order"]]
        self.start = [p.detach().clone() for p in self.order]
        self.clean: list[Tensor] = []
        self.hit: list[Tensor] = []

    def attacked(self, batch: Batch, seen: Any = lambda images: None) -> Example:
        """Return the images after the attack, and keep them."""
        found = super().attacked(batch, seen)
        self.clean.append(batch.images)
        self.hit.append(found.images)
        return found

    def logits(self) -> dict[str, Tensor]:
        """Return what both models say of the images of the last step."""
        clean, hit = (torch.cat(parts[-2:]) for parts in (self.clean, self.hit))
        return {"logits": self.student(hit), "logits_original": self.teacher(hit), "logits_clean": self.student(clean)}


def trained(case: Case, config: Config) -> dict[str, Tensor]:
    """Return what each step of a case gives, from its own starts: losses by name, learning rates, images, gradients, parameters, logits."""
    data, rows = case.arrays, []
    learner = Seen(case, replace(config, optim=replace(config.optim, batch=len(data["labels"][0]), micro_batch=MICRO_BATCH)))

    def given(ball: Ball, images: Tensor, ids: list[str], seed: int, what: str, number: int) -> Tensor:
        return data["start"][number][[int(id_) for id_ in ids]]

    def flat(tensors: list[Tensor]) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in tensors])[data["places"]].clone()

    def norms(tensors: list[Tensor]) -> Tensor:
        return torch.stack([tensor.norm() for tensor in tensors])

    def before(*_: Any) -> None:
        gradients = [p.grad for p in learner.order]
        rows.append({"gradient": flat(gradients), "gradient_norm": norms(gradients), **learner.logits()})

    learner.optimiser.optimizer.register_step_pre_hook(before)
    with patch.object(inner_attack, "random_start", given):
        for number in range(learner.steps):
            batch = number % len(data["images"])
            images, labels = data["images"][batch], data["labels"][batch]
            found = step(learner, (pixels(images), labels, [str(i) for i in range(len(labels))]), MICRO_BATCH)
            moved = [p.detach() - start for p, start in zip(learner.order, learner.start, strict=True)]
            after = {"parameters": flat([p.detach() for p in learner.order]), "moved_norm": norms(moved)}
            said = {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}
            rows[-1] |= after | said | {"attacked": torch.cat(learner.hit[-2:])}
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def chosen(found: Mapping[str, Tensor], names: str, end: str = "") -> dict[str, Tensor]:
    """Return some of what was found, the names with an end."""
    return {f"{name}{end}": found[name] for name in names.split()}


TRAINING = "loss attacked gradient gradient_norm parameters moved_norm"


def tecoa(case: Case) -> dict[str, Tensor]:
    """TeCoA's recipe at the rate of the case; its attack, momentum, decay and template are the recipe's own."""
    config, said, long = RECIPES["tecoa-b32"].config, case.settings, case.settings["cosine_lr"]
    optim = replace(config.optim, lr=said["optimizer"]["lr"], warmup=said["schedule"]["warmup"])
    found = trained(case, replace(config, optim=optim))
    rates = replace(config.optim, lr=long["lr"], warmup=long["warmup"])
    return {
        **chosen(found, f"{TRAINING} lr"),
        **chosen(found, "loss gradient", "_scaled"),
        "parameters_scaled_last": found["parameters"][-1],
        "cosine_lr": torch.tensor([lr_at(number, rates, long["steps"]) for number in range(long["steps"])], dtype=torch.float64),
    }


def pmg(case: Case) -> dict[str, Tensor]:
    """PMG-AFT's recipe at the attack and rate of the case; a mean times the batch is the published sum."""
    config, said, attack = RECIPES["pmg-b32"].config, case.settings, case.settings["attack"]
    eps, count = attack["eps_in_255ths"], float(said["images_per_step"])
    changed = replace(
        config,
        defense=replace(config.defense, general=count, clean=count),
        threat=ThreatModel(Ball("Linf", eps)),
        attack=InnerAttack(attack["steps"], attack["step_in_255ths"] / eps),
        optim=replace(config.optim, lr=said["optimizer"]["lr"], warmup=said["schedule"]["warmup"]),
    )
    found = trained(case, changed)
    return {
        **chosen(found, f"{TRAINING} lr logits logits_original logits_clean"),
        **chosen(found, "loss gradient", "_scaled"),
        "parameters_scaled_last": found["parameters"][-1],
        "cross_entropy": found["loss/pmg_robust"],
        "general": found["loss/pmg_general"],
        "clean": found["loss/pmg_clean"],
    }


@dataclass(frozen=True)
class Given(Table):
    """The one word that a case puts into each prompt, at its place, be it a stop word's."""

    def places(self, prompt: Prompt, scope: Scope) -> list[int]:
        """Return the place of that word."""
        return list(self.entries[prompt.text])

    def masked(self, prompt: Prompt, place: int, scope: Scope) -> Prompt:
        """Return the prompt as it is: of one place none is more important."""
        return prompt


def rewordings(texts: list[str]) -> Given:
    """Return the source that makes the second half of some prompts from the first."""
    entries: dict[str, dict[int, list[str]]] = {}
    for clean, new in zip(texts[: len(texts) // 2], texts[len(texts) // 2 :], strict=True):
        entries[clean] = {i: [b] for i, (a, b) in enumerate(zip(clean.split(), new.split(), strict=True)) if a != b}
    return Given("given", "", entries)


def mmcoa(case: Case) -> dict[str, Tensor]:
    """MMCoA's two recipes at the rate of the case, with its words; attack, decay, betas, eps and what learns are the recipes' own."""
    found = {}
    for kind, recipe in (("published", "mmcoa-ref-b32"), ("repaired", "mmcoa-b32")):
        config = RECIPES[recipe].config
        text = replace(config.defense.text, source=rewordings(case.settings["texts"]), collisions=True)
        optim = replace(config.optim, lr=case.settings["optimizer"][kind]["lr"])
        each = trained(case, replace(config, defense=replace(config.defense, text=text), optim=optim))
        found |= chosen(each, TRAINING, f"_{kind}")
    return found


STEPS = "attacked images, loss, gradients, parameters"
METHODS = [
    Method(
        "tecoa",
        "TeCoA",
        tecoa,
        equal=f"4 training steps: {STEPS}, learning rates; 40 rates of warm-up and cosine; to 1e-4 also the steps as on a GPU",
    ),
    Method(
        "pmg",
        "PMG-AFT",
        pmg,
        equal=f"4 training steps: {STEPS}, learning rates, logits of both models, cross-entropy, both divergences; also as on a GPU",
        besides=[
            "The divergences are means over the batch, not sums: weights of 6 make them the published sums of 6 images.",
            "The logits have CLIP's factor exp(logit_scale), which the published code takes out again; in the case it is 1.",
            "Images are normalised as the model says; the published code takes ImageNet's mean and std, which the case's model has.",
        ],
    ),
    Method(
        "mmcoa",
        "MMCoA",
        mmcoa,
        equal=f"3 training steps as published and 3 repaired: {STEPS}",
        besides=[
            "mmcoa-b32 leaves the attack's own gradients out and uses AdamW with eps 1e-8; mmcoa-ref-b32 trains as published.",
            "mmcoa-b32 holds logit_scale below ln 100, mmcoa-ref-b32 does not, as published.",
            "The words come from the token embedding, or from a table that BERT made, not from BERT while it trains.",
            "Words that name another class are left out unless collisions are allowed.",
        ],
    ),
]
