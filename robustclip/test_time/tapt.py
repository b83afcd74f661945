"""TAPT (Wang, Chen, Zhang, Chen, Ma, "Test-Time Adversarial Prompt Tuning", CVPR 2025) and PromptAlign, which it comes from."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from robustclip.base.errors import UserError
from robustclip.base.seeds import generator
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.joint import JointPrompt
from robustclip.test_time.moments import Targets
from robustclip.test_time.tuning import PromptTuner, Seen, Tuning, entropy_of_mean


@dataclass(frozen=True)
class TAPT(Tuning):
    """Learned prompts follow each image: confident views agree and look to every block as training images did (arXiv:2411.13136).

    L = H(mean of p over the kept views) + `weight` sum_l [ `gamma` A_l(adversarial) + (1 - `gamma`) A_l(clean) ],
    A_l = mean |mu_l - M_l| / 2 + mean |sigma2_l - S_l| / 2 over tokens and channels, l over the blocks with tokens; mu and sigma2 of the
    kept views. M and S are training statistics (robustclip moments) through the prompts of adversarial training, which it starts from,
    and through those of clean training: the files `adversarial` and `clean`. `weight` is per block, 100 over the paper's 9.
    `paper_compat` leaves out the last block and divides the variance by k, `random_reset` throws the trained tokens (not the context)
    away before every image: both as the published code does.
    """

    adversarial: str = ""
    clean: str = ""
    gamma: float = 0.5
    weight: float = 100 / 9
    paper_compat: bool = False
    random_reset: bool = False

    def classifier(self, base: ZeroShotClassifier, seed: int) -> PromptTuner:
        """Return the classifier that tunes; raises UserError for a model without learned tokens, and for statistics of another one."""
        prompt = learned_tokens(base, "tapt", self)
        targets = self.targets(base)
        blocks = range(prompt.depth - 1 if self.paper_compat else prompt.depth)

        def loss(seen: Seen) -> Tensor:
            parts = [share * alignment(seen.blocks, target, blocks, not self.paper_compat) for share, target in targets]
            return entropy_of_mean(seen.logits) + self.weight * sum(parts)

        if self.random_reset:
            prompt = thrown_away(prompt, seed)
        return PromptTuner(base, prompt, self, loss, blocks=True, seed=seed)

    def targets(self, base: ZeroShotClassifier) -> list[tuple[float, Targets]]:
        """Return the statistics that are aligned with, each with its share."""
        wanted = ((self.gamma, self.adversarial, False), (1 - self.gamma, self.clean, True))
        found = []
        for share, path, other_prompt in wanted:
            if not 0 <= share <= 1 or (share and not path):
                raise UserError(
                    f"tapt: gamma is {self.gamma}, so it needs the files {'adversarial' if self.gamma else ''} "
                    f"{'clean' if self.gamma < 1 else ''} of robustclip moments, written tapt[adversarial=FILE,clean=FILE]:MODEL"
                )
            if share:
                targets = Targets.read(path)
                targets.check(base, other_prompt=other_prompt)
                found.append((share, targets))
        return found


@dataclass(frozen=True)
class PromptAlign(Tuning):
    """TAPT's ancestor: learned prompts, entropy, and alignment with the statistics of clean images alone (arXiv:2311.01459).

    L = H(mean of p over the kept views) + `weight` sum_l A_l(clean), through the prompts it starts from. `weight` is per block: 100 over
    the paper's 3.
    """

    lr: float = 4e-2
    clean: str = ""
    weight: float = 100 / 3

    def classifier(self, base: ZeroShotClassifier, seed: int) -> PromptTuner:
        """Return the classifier that tunes; raises UserError as TAPT's does."""
        prompt = learned_tokens(base, "promptalign", self)
        if not self.clean:
            raise UserError("promptalign needs statistics of robustclip moments, written promptalign[clean=FILE]:MODEL")
        targets = Targets.read(self.clean)
        targets.check(base)

        def loss(seen: Seen) -> Tensor:
            return entropy_of_mean(seen.logits) + self.weight * alignment(seen.blocks, targets, range(prompt.depth), True)

        return PromptTuner(base, prompt, self, loss, blocks=True, seed=seed)


def alignment(blocks: list[Tensor], targets: Targets, layers: range, unbiased: bool) -> Tensor:
    """Return sum_l A_l [S] of what views look like to the blocks, each [S,k,T,D], against targets [L,T,D]."""
    total = torch.zeros_like(blocks[0][:, 0, 0, 0])
    for i in layers:
        mean, variance = blocks[i].mean(1), blocks[i].var(1, unbiased=unbiased)
        for found, wanted in ((mean, targets.mean[i]), (variance, targets.variance[i])):
            total = total + (found - wanted.to(found)).abs().flatten(1).mean(1) / 2
    return total


def learned_tokens(base: ZeroShotClassifier, who: str, settings: Tuning) -> JointPrompt:
    """Return the learned prompt of a model with tokens in its images; raises UserError for a model without, and for a single kept view."""
    if settings.kept < 2:
        raise UserError(f"{who}: {settings.kept} of {settings.views} views is kept, which has no variance: raise keep or views")
    if not isinstance(base.prompt, JointPrompt) or base.prompt.design == "text":
        raise UserError(
            f"{who} tunes learned tokens of the visual tower, and this model has none: train one of the recipes advvpt, advvlp or advmaple"
        )
    return base.prompt


def thrown_away(prompt: JointPrompt, seed: int) -> JointPrompt:
    """Return a prompt whose tokens are as at construction, the context as trained; raises UserError where the published code is right."""
    if prompt.design not in ("visual", "independent"):
        raise UserError(f"tapt: random_reset is what the published code does to independent prompts, not to {prompt.design!r}")
    g, fresh = generator(seed, "random reset"), copy.deepcopy(prompt)
    with torch.no_grad():
        for name, p in fresh.named_parameters():
            if name != "context":
                p.copy_(0.02 * torch.randn(p.shape, generator=g))
    return fresh
