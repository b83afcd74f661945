"""Faults planted in what is attacked and scored."""

import copy
from dataclasses import replace

import torch
from open_clip.transformer import QuickGELU
from probes import NAMES, TEMPLATES, changed
from torch import nn

from robustclip import names as models
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.dress import LinearHead, TokenPrompt
from robustclip.training.installing import install


class Before(nn.Module):
    """A classifier with something in front of it."""

    def __init__(self, classifier, front):
        super().__init__()
        self.front, self.classifier = front, classifier

    def forward(self, x):
        return self.classifier(self.front(x))


class After(nn.Module):
    """A classifier with something done to its logits."""

    def __init__(self, classifier, back):
        super().__init__()
        self.classifier, self.back = classifier, back

    def forward(self, x):
        return self.back(self.classifier(x))


class Do(nn.Module):
    """A function as a module."""

    def __init__(self, do):
        super().__init__()
        self.do = do

    def forward(self, x):
        return self.do(x)


class Leaky(nn.Module):
    """A defence that subtracts a running average of what it has seen."""

    def __init__(self):
        super().__init__()
        self.average = 0.0

    def forward(self, x):
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        return x - 0.5 * self.average


class Adapts(nn.Module):
    """A defence that takes one gradient step on its input in every forward."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, x):
        with torch.enable_grad():
            moved = x.detach().requires_grad_(True)
            (g,) = torch.autograd.grad(self.classifier(moved).logsumexp(1).sum(), moved)
        return self.classifier(x - 0.01 * g.sign())


def nan_for_one(x):
    """Leave x as it is, but give the brightest image a gradient that is not a number."""
    if x.requires_grad:
        level = x.detach().flatten(1).mean(1)
        bad = (level == level.max())[:, None, None, None]
        x = x * 1
        x.register_hook(lambda g: torch.where(bad, torch.nan, g))
    return x


def in_bf16(classifier):
    def run(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return classifier(x)

    return run


def allow_tf32(x):  # as many training scripts do, for the whole process
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    return x


def both(make):
    """Attack and score a wrapped classifier."""

    def plant(subject, patch):
        wrapped = make(subject.classifier).eval()
        return changed(subject, classifier=wrapped, attacked=wrapped)

    return plant


def front(do):
    return both(lambda classifier: Before(classifier, Do(do)))


def back(do):
    return both(lambda classifier: After(classifier, Do(do)))


def no_gradient(**without):
    """Attack and score a classifier whose input is detached, the gradient through it exactly 0; the ball is one a black box can use."""

    def plant(subject, patch):
        blind = front(lambda x: x.detach() + 0 * x)(subject, patch)
        return changed(blind, protocol=replace(subject.protocol, eps=(24.0,)), **without)

    return plant


def jpeg_like(x):
    """Round block averages and what is left of them, as JPEG rounds its coefficients."""
    coarse = nn.functional.interpolate(nn.functional.avg_pool2d(x, 4), scale_factor=4)
    return (coarse * 12).round() / 12 + ((x - coarse) * 4).round() / 4


def a_filter(subject, patch):
    front = Do(jpeg_like)
    wrapped = Before(subject.classifier, front).eval()
    return changed(subject, classifier=wrapped, attacked=wrapped, preprocessing=front)


def batch_norm(classifier):
    wrapped = Before(classifier, nn.BatchNorm2d(3, affine=False, momentum=0.0))
    wrapped.eval()
    return wrapped


def train_mode_norm(subject, patch):
    wrapped = batch_norm(subject.classifier)
    wrapped.front.train()
    return changed(subject, classifier=wrapped, attacked=wrapped)


def undefended(subject, patch):
    return changed(subject, attacked=OTHER[0])


OTHER = []  # the classifier of other weights; the test puts it here


def detached(subject, patch):
    return changed(subject, attacked=Before(subject.classifier, Do(lambda x: x.detach())).eval())


def normalised_tensors(subject, patch):
    return changed(subject, images=(subject.images - subject.classifier.mean) / subject.classifier.std)


def normalised_twice(subject, patch):
    honest = ZeroShotClassifier.embed_images
    patch.setattr(ZeroShotClassifier, "embed_images", lambda self, x: honest(self, (x - self.mean) / self.std))
    return changed(subject)


def resized_outside(subject, patch):
    def embed(self, images):
        return nn.functional.normalize(self.clip.visual((images - self.mean) / self.std), dim=-1)

    patch.setattr(ZeroShotClassifier, "embed_images", embed)
    return changed(subject)


def other_constants(subject, patch):
    classifier = copy.deepcopy(subject.classifier)
    classifier.mean.copy_(torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
    classifier.std.copy_(torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
    return changed(subject, classifier=classifier, attacked=classifier)


def prompted(subject):
    model, _ = install(TokenPrompt(2), subject.model.copy(), 0, NAMES)
    model.prompt.requires_grad_(False)
    classifier = model.classifier(NAMES, TEMPLATES)
    return changed(subject, model=model, classifier=classifier, attacked=classifier)


def other_template(subject, patch):
    return changed(subject, attacked=subject.model.classifier(NAMES, ("a drawing of one {}.",)))


def without_prompt(subject, patch):
    subject = prompted(subject)
    return changed(subject, attacked=replace(subject.model, prompt=None).classifier(NAMES, TEMPLATES))


def reset_to_random(subject, patch):
    subject = prompted(subject)
    fresh = TokenPrompt(2).build(subject.model, seed=7)
    classifier = replace(subject.model, prompt=fresh).classifier(NAMES, TEMPLATES)
    return changed(subject, classifier=classifier, attacked=classifier)


def probed(plain):
    """Return a copy with a linear readout that says what the texts would."""
    model, _ = install(LinearHead(), plain.copy(), 0, NAMES)
    model.readout.weight.data.copy_(10 * plain.classifier(NAMES, TEMPLATES).class_embeddings)
    model.readout.requires_grad_(False)
    return model


def other_readout(model):
    """Return a classifier of the model whose readout is another one."""
    readout = copy.deepcopy(model.readout)
    readout.bias += 0.1
    return replace(model, readout=readout).classifier(NAMES, TEMPLATES)


def without_readout(subject, patch):
    model = probed(subject.model)
    return changed(subject, model=model, classifier=model.classifier(NAMES, TEMPLATES), attacked=other_readout(model))


def readout_changed(subject, patch):
    model = probed(subject.model)
    return changed(subject, model=model, classifier=other_readout(model), attacked=other_readout(model))


def other_activation(subject, patch):
    classifier = copy.deepcopy(subject.classifier)
    for block in classifier.clip.visual.transformer.resblocks:
        block.mlp.gelu = QuickGELU()
    return changed(subject, classifier=classifier, attacked=classifier)


def plain_gelu_for_openai(subject, patch):
    return changed(subject, source="open_clip:ViT-B-32/openai")


def falls_back(subject, patch):
    patch.setattr(models, "load", lambda name: subject.model)
    return changed(subject)


def scored_in_train_mode(subject, patch):
    wrapped = copy.deepcopy(subject.classifier).train()
    return changed(subject, classifier=wrapped, attacked=wrapped)


def says_no_templates(subject, patch):
    return changed(subject, model=replace(subject.model, card={**subject.model.card, "run": "1", "class_names": ["a"]}))


def one_more_class(subject, patch):
    return changed(subject, classes=subject.classes + 1)


FAULTS = [
    ("3", "the input rounded, gradient 0", front(lambda x: (x * 4).round() / 4)),
    ("5", "no gradient, against a black box", no_gradient(baseline=None)),
    ("5", "no gradient, against transfer", no_gradient(black_box=None)),
    ("6", "logits times 1e4", back(lambda z: 1e4 * z)),
    ("6", "one gradient that is not a number", front(nan_for_one)),
    ("7", "a forward in bf16", both(lambda classifier: Do(in_bf16(classifier)))),
    ("7", "a forward in TF32", front(allow_tf32)),
    ("10", "dropout left on", front(lambda x: nn.functional.dropout(x, 0.1, training=True))),
    ("10", "a layer of Gaussian noise", front(lambda x: x + 0.01 * torch.randn_like(x))),
    ("11", "the attacks get the undefended model", undefended),
    ("11", "the attacks get a copy with a detached forward", detached),
    ("11", "an optimisation inside the forward", both(Adapts)),
    ("12", "a running average leaks from image to image", both(lambda classifier: Before(classifier, Leaky()))),
    ("13", "a norm without dim", back(lambda z: 9 * z / z.norm())),
    ("13", "batch norm in train mode", train_mode_norm),
    ("14", "the attack is given normalised tensors", normalised_tensors),
    ("14", "normalised twice", normalised_twice),
    ("14", "no resize inside", resized_outside),
    ("14", "ImageNet's constants", other_constants),
    ("15", "more classes than logits", one_more_class),
    ("18", "attacked with another template", other_template),
    ("18", "attacked without the visual prompt", without_prompt),
    ("18", "attacked with another readout", without_readout),
    ("19", "a gradient call inside the forward", both(Adapts)),
    ("20", "a JPEG-like filter in front", a_filter),
    ("G2", "a reset to random prompts", reset_to_random),
    ("G2", "a readout that is not the checkpoint's", readout_changed),
    ("G3", "QuickGELU under a plain config", other_activation),
    ("G3", "OpenAI's weights in plain GELU", plain_gelu_for_openai),
    ("G4", "another model on a load error", falls_back),
    ("G5", "scored in train mode", scored_in_train_mode),
    ("G6", "a gradient that is not a number", front(nan_for_one)),
    ("G8", "a checkpoint without its templates", says_no_templates),
]
