"""R-TPT: Sheng, Liang, Wang, He, "R-TPT: Improving Adversarial Robustness of Vision-Language Models through Test-Time Prompt Tuning"."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.base.draws import Key
from robustclip.base.ranges import AMOUNT, COUNT, check_fields
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.test_time.tpt import context_of
from robustclip.test_time.tuning import Adapted, PromptTuner, Tuning, entropy


@dataclass(frozen=True)
class RTPT(Tuning):
    """As TPT with every view's own entropy, and an answer of all views that agree with others (CVPR 2025, arXiv:2504.11195).

    L = mean over the kept views of H(p_v). Answer: sum_v w_v logits_v, w = softmax(score / `temperature`), score_v the mean of the
    `neighbours` largest cosines of view v with the other views, by image features, which the tuning of texts leaves alone.
    The paper's views are crops on ImageNet, `augment` = "augmix" on every other set.
    """

    lr: float = 5e-3
    neighbours: int = 20
    temperature: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "RTPT: ", neighbours=COUNT, temperature=AMOUNT)

    def classifier(self, base: ZeroShotClassifier, seed: int) -> PromptTuner:
        """Return the classifier that tunes; raises UserError for a text tower that is not open_clip's."""
        return Weighted(base, context_of(base), self, lambda seen: entropy(seen.logits).mean(1), seed=seed)


class Weighted(PromptTuner):
    """A tuner that answers with all views, those the more that resemble others."""

    settings: RTPT

    def answer(self, images: Tensor, keys: Sequence[Key], adapted: Adapted) -> Tensor:
        """Return the weighted logits [B,K]."""
        views = self.views(images, keys)
        features = F.normalize(self.start.features(views.flatten(0, 1)), dim=-1).unflatten(0, views.shape[:2])
        weights = reliability(features, self.settings.neighbours, self.settings.temperature)
        return (weights[..., None] * self.start.against(features, adapted.classes)).sum(1)


def reliability(features: Tensor, neighbours: int, temperature: float) -> Tensor:
    """Return the weights [S,V] of views with unit features [S,V,D]; they sum to 1, and a view is no neighbour of itself."""
    count = features.shape[1]
    if count == 1:
        return torch.ones_like(features[..., 0])
    itself = torch.eye(count, dtype=torch.bool, device=features.device)
    cosines = (features @ features.mT).masked_fill(itself, -torch.inf)
    return (cosines.topk(min(neighbours, count - 1), dim=-1).values.mean(-1) / temperature).softmax(-1)
