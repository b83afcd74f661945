"""The mean of the most confident views, nothing tuned: the free baseline of every method that tunes on views."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.base.draws import Key
from robustclip.models.adaptive import Adaptive
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.test_time.tuning import Tuning, most_confident


@dataclass(frozen=True)
class ViewEnsemble(Tuning):
    """Answers with the log of the mean prediction over the views of lowest entropy; `keep` = 1 takes them all."""

    steps: int = 0

    def classifier(self, base: ZeroShotClassifier, seed: int) -> "Views":
        """Return the classifier over views."""
        return Views(base, self, seed)


class Views(Adaptive):
    """A classifier that answers with its views."""

    def __init__(self, base: ZeroShotClassifier, settings: ViewEnsemble, seed: int = 0):
        super().__init__(base, seed=seed)
        self.settings = settings

    def adapt(self, images: Tensor, keys: Sequence[Key], through: bool) -> None:
        """Change nothing."""

    def answer(self, images: Tensor, keys: Sequence[Key], adapted: None) -> Tensor:
        """Return the log of the mean prediction [B,K]."""
        views = self.settings.views_of(images, keys)
        logits = self.base(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        kept = most_confident(logits.detach(), self.settings.kept)
        log_p = F.log_softmax(logits, -1).gather(1, kept[..., None].expand(-1, -1, logits.shape[-1]))
        return log_p.logsumexp(1) - torch.tensor(float(self.settings.kept)).log()
