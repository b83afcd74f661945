"""A tiny model with learned tokens and TAPT on it, for tests of what tunes prompts at test time."""

import torch
from conftest import NAMES

from robustclip.models.dress import JointTokens
from robustclip.test_time import TAPT
from robustclip.test_time.moments import Moments, Targets, block_inputs
from robustclip.training.installing import install

TEMPLATE = "a photo of a {}."
DESIGNS = ("visual", "independent", "text to visual")
FEW = {"views": 8, "keep": 0.5}


def with_tokens(make_model, pictures, folder, design, seed=0):
    """Return a classifier with learned tokens (of one block) and the file of its statistics, in `folder`."""
    worn, parameters = install(JointTokens(design, 2, 1), make_model("vit", seed), 3, NAMES)
    with torch.no_grad():
        for p in parameters:
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5))
            p.requires_grad_(False)
    classifier = worn.classifier(NAMES, (TEMPLATE,))
    path = str(folder / f"{design}-{seed}.safetensors")
    Targets.of(Moments.of(block_inputs(classifier, pictures(24, seed=9)[0])), classifier, "pictures", "train", "centre").write(path)
    return classifier, path


def tapt(classifier, path, **settings):
    return TAPT(**{**FEW, "adversarial": path, "clean": path, **settings}).classifier(classifier, seed=0)
