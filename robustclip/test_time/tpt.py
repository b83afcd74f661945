"""TPT: Shu, Nie, Huang, Yu, Goldstein, Anandkumar, Xiao, "Test-Time Prompt Tuning for Zero-Shot Generalization", NeurIPS 2022."""

from dataclasses import dataclass

import torch

from robustclip.base.errors import UserError
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.joint import JointPrompt
from robustclip.test_time.tuning import PromptTuner, Tuning, entropy_of_mean

TEMPLATE, WORDS = "a photo of a {}.", 4


@dataclass(frozen=True)
class TPT(Tuning):
    """The words "a photo of a" are tuned so that the confident views of an image agree (arXiv:2209.07511, Eqs. 2-4).

    L = H(mean of p over the kept views). A model whose texts wear learned tokens already starts from those. The paper's views are crops on
    ImageNet and its shifts, `augment` = "augmix" on fine-grained sets.
    """

    lr: float = 5e-3

    def classifier(self, base: ZeroShotClassifier, seed: int) -> PromptTuner:
        """Return the classifier that tunes; raises UserError for a text tower that is not open_clip's."""
        return PromptTuner(base, context_of(base), self, lambda seen: entropy_of_mean(seen.logits), seed=seed)


def context_of(base: ZeroShotClassifier) -> JointPrompt:
    """Return the prompt in a model's texts, or the words of TEMPLATE for one without any; raises UserError for another prompt."""
    if isinstance(base.prompt, JointPrompt) and base.prompt.design == "text":
        return base.prompt
    if base.prompt is not None:
        raise UserError("this model wears a prompt in its images, which tuning words alone would take off: tune it by tapt or promptalign")
    words = JointPrompt(base.clip, base.tokenizer, "text", WORDS, 1, TEMPLATE, "words", torch.Generator())
    return words.to(base.mean.device).requires_grad_(False)
