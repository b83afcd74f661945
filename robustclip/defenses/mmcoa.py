"""MMCoA: Zhou et al., "Revisiting the Adversarial Robustness of Vision Language Models: a Multimodal Perspective", arXiv:2404.19287."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.attacks.base import Objective
from robustclip.attacks.losses import cross_entropy
from robustclip.attacks.text.search import TextAttack
from robustclip.base.errors import UserError
from robustclip.defenses.base import Batch, Defense, Roles

Targets = Literal["diag", "class_lse"]


class Pairs(NamedTuple):
    """The pairs of one step over all workers: unit features [B,D] of images, clean and attacked, and of their prompts, clean and rewritten.

    labels [B], and `scale`, the exponentiated logit_scale.
    """

    images: Tensor
    attacked: Tensor
    texts: Tensor
    rewritten: Tensor
    labels: Tensor
    scale: Tensor


class Paired(Defense):
    """A defence whose loss sets every image of a step against the prompts of all the others, whatever worker holds them.

    `text` rewrites the prompts (None: they stay as they are): at every step those of the batch's classes, or, with `refresh` above 1, all
    of them every so many steps. `leak_attack_grads` adds what the published code adds unasked: the gradients of the attack's own loss at
    all its iterates, on both towers.
    """

    text: TextAttack | None = None
    refresh: int = 1
    leak_attack_grads: bool = False

    def pair_loss(self, pairs: Pairs) -> dict[str, Tensor]:
        """Return the outer minimisation as named parts, each a mean over the pairs; their sum is lowered."""
        raise NotImplementedError


def both_ways(images: Tensor, texts: Tensor, pairs: Pairs, targets: Targets = "diag") -> Tensor:
    """Return CEs(A, B) = CE(s A B^T, own) + CE(s B A^T, own) of unit features [B,D], means over the batch (section 3.2 of the paper).

    "class_lse" counts all pairs of the own class as right: minus the log of their summed probability.
    """
    logits = pairs.scale * images @ texts.T
    if targets == "diag":
        own = torch.arange(len(logits), device=logits.device)
        return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
    same = pairs.labels[:, None] == pairs.labels
    return sum(each.logsumexp(1).sub(each.masked_fill(~same, -torch.inf).logsumexp(1)).mean() for each in (logits, logits.T))  # type: ignore


@dataclass(frozen=True)
class CleanContrastive(Paired):
    """CLIP's own loss on pairs of an image and its class prompt, nothing attacked: what clean data alone does for robustness."""

    targets: Targets = "diag"

    def objective(self, roles: Roles, batch: Batch) -> Objective | None:
        """Return nothing: the images stay clean."""
        return None

    def pair_loss(self, pairs: Pairs) -> dict[str, Tensor]:
        """Return (i2t + t2i) / 2."""
        return {"contrastive": both_ways(pairs.images, pairs.texts, pairs, self.targets) / 2}


@dataclass(frozen=True)
class MMCoA(Paired):
    """L = lambda_txt CEs(I, T') + lambda_img CEs(I', T): clean images with rewritten prompts, attacked images with clean ones.

    The image attack raises the cross-entropy over all clean class prompts (TeCoA's, not this loss); the text attack knows no image. In the
    paper the words come from BERT; `text` says where they come from here, and only a table made by BERT may be called by that name.
    `targets` "diag" takes pairs of one class in a batch for negatives, as published. A weight of 0 leaves its attack out.
    Raises UserError for negative weights, or none.
    """

    lambda_img: float = 0.5
    lambda_txt: float = 0.5
    targets: Targets = "diag"
    text: TextAttack = field(default_factory=TextAttack)
    refresh: int = 1
    leak_attack_grads: bool = False

    def __post_init__(self) -> None:
        if min(self.lambda_img, self.lambda_txt) < 0 or self.lambda_img + self.lambda_txt == 0:
            raise UserError(f"defense.lambda_img is {self.lambda_img}, lambda_txt {self.lambda_txt}: weights, not negative, not both 0")
        if self.refresh < 1:
            raise UserError(f"defense.refresh is {self.refresh}: prompts are rewritten every so many steps, 1 or more")

    def objective(self, roles: Roles, batch: Batch) -> Objective | None:
        """Return CE(x + delta, y) over the clean class prompts; nothing where attacked images do not train."""
        return cross_entropy(roles.student, batch.labels, verdict=False) if self.lambda_img else None

    def pair_loss(self, pairs: Pairs) -> dict[str, Tensor]:
        """Return the two weighted terms."""
        parts = {}
        if self.lambda_txt:
            parts["text"] = self.lambda_txt * both_ways(pairs.images, pairs.rewritten, pairs, self.targets)
        if self.lambda_img:
            parts["image"] = self.lambda_img * both_ways(pairs.attacked, pairs.texts, pairs, self.targets)
        return parts
