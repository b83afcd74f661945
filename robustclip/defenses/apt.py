"""APT: Li, Guan, Qiu, Spratling, "One Prompt Word is Enough to Boost Adversarial Robustness for Pre-trained VLMs", CVPR 2024."""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.attacks.base import Example, Objective, Scored
from robustclip.attacks.losses import cross_entropy
from robustclip.base.errors import UserError
from robustclip.defenses.base import Batch, Defense, Roles
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.joint import JointPrompt


@dataclass(frozen=True)
class APT(Defense):
    """Adversarial prompt tuning (arXiv:2403.01849, its objective and its three prompts of the attack): TeCoA's loss in the text's context.

    delta* = argmax_{|delta| <= eps} CE(p(x + delta; t'), y);  c <- argmin_c CE(p(x + delta*; c), y), on a tower that is robust already.
    `attack_prompt` is t': the context as it is ("onfly"); the hand-written prompt of the model before training ("constant"); or a copy of
    the context that climbs with the images ("perturbed"): after each of their steps one of plain SGD, `context_lr` times the gradient of
    the micro-batch's mean loss. The student's own context never moves in an attack. The paper's code gives `context_lr` no default; ours
    is the rate of its training. A perturbed context is shared by a micro-batch, which is then part of the method.
    The paper's class-specific contexts are left out: they know no class but those that trained them.
    """

    attack_prompt: Literal["onfly", "constant", "perturbed"] = "onfly"
    context_lr: float = 0.002

    def __post_init__(self) -> None:
        if self.context_lr < 0:
            raise UserError(f"defense.context_lr is {self.context_lr}: a rate cannot be negative")

    @property
    def whole_batch(self) -> bool:  # type: ignore[override]
        """Whether the images of a micro-batch share a context that moves with them."""
        return self.attack_prompt == "perturbed"

    def objective(self, roles: Roles, batch: Batch) -> Objective:
        """Return CE(p(x + delta; t'), y); raises UserError for another prompt than the student's where it has no context."""
        if self.attack_prompt == "onfly":
            return cross_entropy(roles.student, batch.labels, verdict=False)
        prompt = roles.student.prompt
        if not isinstance(prompt, JointPrompt) or "context" not in prompt.state():
            raise UserError(
                f"defense.attack_prompt is {self.attack_prompt!r}, but no context is learned in the texts: take onfly, or JointTokens "
                "with a design other than visual"
            )
        moved = copy.deepcopy(prompt).requires_grad_(False)
        met = roles.student.wearing(moved)
        if self.attack_prompt == "perturbed":
            return self._climbing(met, moved, batch)
        met.class_embeddings = roles.teacher.class_embeddings
        return cross_entropy(met, batch.labels, verdict=False)

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return CE(p(x + delta*; c), y)."""
        return {"apt": F.cross_entropy(roles.student(adversarial.images), batch.labels)}

    def _climbing(self, met: ZeroShotClassifier, moved: JointPrompt, batch: Batch) -> Objective:
        """Return the cross-entropy by a classifier whose prompt is its own: the context climbs each time it is asked."""
        moved.context.requires_grad_(True)

        def objective(images: Tensor) -> Scored:
            met.class_embeddings = met.class_features()
            scored = cross_entropy(met, batch.labels, verdict=False)(images)
            (g,) = torch.autograd.grad(scored.loss.mean(), moved.context, retain_graph=True)
            moved.context = nn.Parameter(moved.context.detach() + self.context_lr * g)
            return scored

        return objective
