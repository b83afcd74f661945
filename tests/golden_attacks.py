"""Ours beside the published attacks: PGD through TeCoA's visual prompts, CW of its code, and Co-Attack of MMCoA's."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from golden_case import Case, Method
from parts import pixels
from torch import Tensor, nn
from toys import ids_of

from robustclip.attacks import PGD, multimodal, pgd
from robustclip.attacks.losses import margin
from robustclip.attacks.multimodal import CoAttack
from robustclip.attacks.pgd import gradient, move
from robustclip.attacks.text.rewriting import Rewritten
from robustclip.attacks.text.search import TextAttack
from robustclip.base.threat import Ball, ThreatModel
from robustclip.defenses import Batch, CleanCE, Roles, TeCoA
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.dress import Dress, FramedTokens, PixelPrompt, TokenPrompt
from robustclip.training import inner_attack
from robustclip.training.config import Config, InnerAttack
from robustclip.training.learner import Learner
from robustclip.training.recipes import PUBLISHED

# Our parameters of a prompt, and which published ones each is, one after another.
PARTS = {"rows": ("frame.up", "frame.down"), "columns": ("frame.left", "frame.right"), "patch": ("patch",), "tokens": ("prompt_tokens",)}


def keeping(function: Callable[..., Any], kept: list[Any]) -> Callable[..., Any]:
    """Return the function as it is, whose arguments and results are kept."""

    def call(*args: Any) -> Any:
        kept.append((args, function(*args)))
        return kept[-1][1]

    return call


def ball_and_alpha(settings: dict[str, Any]) -> tuple[Ball, float]:
    """Return the ball of a published attack and its step as a share of eps."""
    return Ball(settings["norm"], settings["eps_in_255ths"]), settings["step_in_255ths"] / settings["eps_in_255ths"]


# --- prompters --------------------------------------------------------------------------------------------------------


def prompters(case: Case) -> dict[str, Tensor]:
    """Return what each prompt shows the tower, the logits, the gradient of a clean training step, and the training attack through it."""
    settings, found = case.settings, {}
    width, side, tokens = settings["frame_width"], settings["patch_side"], settings["prompt_tokens"]
    dresses: dict[str, Dress] = {
        "pad": PixelPrompt("pad", width),
        "fixed_patch": PixelPrompt("fixed patch", side),
        "random_patch": PixelPrompt("random patch", side),
        "tokens": TokenPrompt(tokens),
        "pad_tokens": FramedTokens(tokens, width),
    }
    plain = case.model().classifier(settings["class_names"], as_published(case).templates)
    found |= {f"none.{name}": value for name, value in seen_through(case, plain).items()}
    for kind, dress in dresses.items():
        student, gradients = trained_on_clean(case, dress)
        found |= {f"{kind}.gradient.{name}": value for name, value in gradients.items()}
        found |= {f"{kind}.{name}": value for name, value in seen_through(case, student).items()}
    return {name: value for name, value in found.items() if not name.endswith("tokens.image")}  # tokens leave the image as it is


def as_published(case: Case, **changes: Any) -> Config:
    """Return the recipe of TeCoA's visual prompts with the attack of the case, on one batch."""
    config, attack = PUBLISHED["tecoa-vp-b32"].config, case.settings["attack"]
    (ball, alpha), count = ball_and_alpha(attack), len(case.arrays["labels"])
    small = replace(config.optim, batch=count, micro_batch=count)
    return replace(config, threat=ThreatModel(ball), attack=InnerAttack(attack["steps"], alpha), optim=small, **changes)


def trained_on_clean(case: Case, dress: Dress) -> tuple[ZeroShotClassifier, dict[str, Tensor]]:
    """Return the student that wears the given prompt, and the prompt's gradient on clean images, by published names."""
    place, gradients = case.settings["place"], {}
    config = as_published(case, trainable=dress, defense=CleanCE())
    learner = Learner(config, case.model(), case.settings["class_names"], (), 1, dtype=torch.float64)
    parts = {name.rsplit(".", 1)[-1]: p for name, p in learner.student.prompt.named_parameters()}
    with torch.no_grad():
        for name, p in parts.items():
            p.copy_(torch.cat([case.arrays[part] for part in PARTS[name]]).view_as(p))
    with mock.patch.object(torch, "randint", return_value=torch.tensor([place["row"], place["column"]])):
        learner.accumulate(pixels(case.arrays["images"]), case.arrays["labels"], ids_of(config.optim.batch))
    for name, p in parts.items():
        for part, g in zip(PARTS[name], p.grad.chunk(len(PARTS[name]))):
            gradients[part.removeprefix("frame.").removeprefix("prompt_")] = g.view_as(case.arrays[part])
    return learner.student, gradients


def seen_through(case: Case, classifier: ZeroShotClassifier) -> dict[str, Tensor]:
    """Return what the tower sees of the images, their logits, the first gradient of TeCoA's training attack and its iterates 1, 2 and 5."""
    images, labels, start = (case.arrays[name] for name in ("images", "labels", "start"))
    shown: list[Tensor] = []
    with torch.no_grad(), classifier.clip.visual.register_forward_pre_hook(lambda module, args: shown.append(args[0])):
        logits = classifier(images)
    config = as_published(case, defense=TeCoA())
    roles, batch = Roles(classifier, classifier), Batch(images, labels, ids_of(len(images)))
    iterates, steps = [], []
    with mock.patch.object(inner_attack, "random_start", return_value=start), mock.patch.object(pgd, "gradient", keeping(gradient, steps)):
        for count in (1, 2, config.attack.steps):
            attack = replace(config.attack, steps=count)
            iterates.append(inner_attack.attacked(replace(config, attack=attack), roles, batch, 0).images)
    first = steps[0][1][1] / len(images)
    return {"image": shown[0], "logits": logits, "attack_gradient_0": first, "iterates": torch.stack(iterates)}


# --- cw ---------------------------------------------------------------------------------------------------------------


def cw(case: Case) -> dict[str, Tensor]:
    """Return the iterates of PGD on the margin and the margins: no image is fooled and all margins fall, so that the best is the last."""
    images, labels, start = (case.arrays[name] for name in ("images", "labels", "start"))
    classifier = case.model().classifier(case.settings["class_names"], [case.settings["template"]])
    ball, alpha = ball_and_alpha(case.settings["attack"])
    with mock.patch.object(pgd, "random_start", return_value=start):
        runs = [
            PGD(steps, alpha, loss="margin")(classifier, images, labels, ids_of(len(images)), ball, 0)
            for steps in range(1, case.settings["attack"]["steps"] + 1)
        ]
    return {
        "logits": classifier(images),
        "gradient_0": gradient(margin(classifier, labels), move(images, start, ball))[1],
        "iterates": torch.stack([run.images for run in runs]),
        "margin": -torch.stack([runs[0].trace.loss_start, *(run.trace.loss_end for run in runs)]),
    }


# --- coattack ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given(TextAttack):
    """A text attack that gives the prompts of a table."""

    table: tuple[str, ...] = ()

    def __call__(self, classifier: nn.Module, guide: Tensor | None = None) -> Rewritten:
        return Rewritten(classifier.texts, self.table, (0.0,) * len(self.table), 0.0)


def coattack(case: Case) -> dict[str, Tensor]:
    """Return what Co-Attack, stopped by no verdict, meets: losses, gradients, iterates, logits. Every loss rises: its best is its last."""
    images, labels, settings = case.arrays["images"], case.arrays["labels"], case.settings
    names, (ball, alpha) = settings["class_names"], ball_and_alpha(settings)
    classifier = case.model().classifier(names, [settings["template"]])
    attack = CoAttack(Given(table=tuple(settings["texts"][len(names) :])), settings["steps"], alpha)
    steps: list[Any] = []
    terms: list[Any] = []
    with (
        mock.patch.object(multimodal, "random_start", return_value=case.arrays["start"]),
        mock.patch.object(multimodal, "fools", lambda logits, labels: torch.zeros_like(labels, dtype=torch.bool)),
        mock.patch.object(multimodal, "kl", keeping(multimodal.kl, terms)),
        mock.patch.object(pgd, "gradient", keeping(gradient, steps)),
    ):
        example = attack(classifier, images, labels, ids_of(len(images)), ball, 0)
    met, gradients = [args[1] for args, _ in steps], [g / len(images) for _, (_, g) in steps]
    reworded = classifier.reworded(example.class_texts)
    rows = zip([scored.loss for _, (scored, _) in steps], *([term for _, term in terms[i::2]] for i in range(2)))
    return {
        "loss": torch.stack([torch.stack([each.mean() for each in row]) for row in rows])[: settings["steps"]],
        "gradient_0": gradients[0],
        "gradient_1": gradients[1],
        "iterate_1": met[1],
        "last": example.images,
        "logits_clean": classifier(images),
        "logits_reworded": reworded(images),
        "logits_last": reworded(example.images),
    }


METHODS = [
    Method(
        "prompters",
        "TeCoA's visual prompts",
        prompters,
        equal="frame, fixed patch, moving patch at one place, tokens, frame and tokens: prompted images, logits, gradients of the prompt, "
        "5 steps of PGD through each",
        besides=[
            "A moving patch is drawn once for each training step and rests in the middle when scored; published: anew at every forward.",
            "A moving patch may lie at the last row and column too, which the published code never draws.",
        ],
    ),
    Method(
        "cw",
        "CW of TeCoA's code",
        cw,
        equal="logits, margins, the first gradient and the images after each of 5 steps, none of which fools the model",
        besides=[
            "An image is left alone once it fools the model, the published attack goes on until it is wrong by 50 logits.",
            "Of an image that resists to the end the iterate of the highest loss is returned, not the last one.",
        ],
    ),
    Method(
        "coattack",
        "Co-Attack of MMCoA's code",
        coattack,
        equal="loss and both of its terms at 10 steps, two gradients, images after 1 and 10 steps, logits before and after",
        besides=[
            "The start is uniform in the whole ball, the published one only in its upper half.",
            "An image is left alone once it fools the classifier of the rewritten prompts, or else its best iterate is returned.",
            "The prompts are rewritten by any of our text attacks, the published ones by BERT; here both are the table of the case.",
        ],
    ),
]
