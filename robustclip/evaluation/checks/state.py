"""Does a result depend on its image alone: no randomness, no memory, no neighbours, no leftovers of an attack."""

import torch
from torch import Tensor, nn

from robustclip import names as models
from robustclip.evaluation.checks.base import SMALL, Subject, Verdict, apart, does_not_apply, logits_of, seeded, verdict
from robustclip.models.adaptive import Adaptive
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.model import tensors_sha256, worn

FORWARDS = 5


def deterministic(subject: Subject) -> Verdict:
    """Check 10: five forwards of the same images give the same bits; a random model needs EOT and several shots (Athalye 2018)."""
    with torch.no_grad():
        logits = [subject.classifier(subject.images) for _ in range(FORWARDS)]
    largest = max(apart(logits[0], other) for other in logits[1:])
    same = all(torch.equal(logits[0], other) for other in logits[1:])
    faults = [] if same else [f"forwards differ by {largest:.2%} of the largest logit: score with EOT and several shots"]
    return verdict(faults, f"{FORWARDS} forwards agree bit for bit", {"logits differ by": largest})


def no_memory(subject: Subject) -> Verdict:
    """Check 12: images one by one in two orders give the same logits and attacked images: nothing leaks, state is reset before a call."""
    forward, backward = list(range(len(subject.images))), list(range(len(subject.images)))[::-1]
    before = tensors_sha256(subject.classifier.state_dict())
    logits = [one_by_one(subject.classifier, subject.images, order) for order in (forward, backward)]
    difference = apart(*logits)
    few, ball = forward[:3], subject.protocol.balls()[-1]
    attacked = [attacked_one_by_one(subject, order) for order in (few, few[::-1])]
    moved = float((attacked[0] - attacked[1]).abs().max()) / ball.radius
    changed = tensors_sha256(subject.classifier.state_dict()) != before
    faults = [f"logits differ by {difference:.2%} of the largest when the order changes"] if not difference <= SMALL else []
    faults += [f"attacked images differ by {moved:.2g} eps when the order changes"] if not moved <= SMALL else []
    faults += ["a forward or an attack changes the model's state"] if changed else []
    return verdict(
        faults, "the order of images changes nothing", {"logits differ by": difference, "attacked images differ by eps x": moved}
    )


def one_by_one(classifier: nn.Module, images: Tensor, order: list[int]) -> Tensor:
    """Return the logits [N,K] of images given alone in an order."""
    logits = {i: logits_of(classifier, images[i : i + 1]) for i in order}
    return torch.cat([logits[i] for i in sorted(logits)])


def attacked_one_by_one(subject: Subject, order: list[int]) -> Tensor:
    """Return the images under the first attack of the protocol at its largest eps, attacked alone in an order."""
    attack, ball, protocol = subject.protocol.attacks[0], subject.protocol.balls()[-1], subject.protocol
    found = {}
    for i in order:
        with seeded():
            one = slice(i, i + 1)
            example = attack(subject.attacked, subject.images[one], subject.labels[one], subject.ids[one], ball, protocol.seed, 1)
        found[i] = example.images
    return torch.cat([found[i] for i in sorted(found)])


def alone_or_together(subject: Subject) -> Verdict:
    """Check 13: the logits of an image alone, in a batch of all and among other neighbours agree to rounding."""
    with torch.no_grad():
        if not torch.equal(subject.classifier(subject.images), subject.classifier(subject.images)):
            return does_not_apply("two forwards of one batch differ (checks 10 and 12), which hides what neighbours do")
    together = logits_of(subject.classifier, subject.images)
    alone = one_by_one(subject.classifier, subject.images, list(range(len(subject.images))))
    half = max(1, len(subject.images) // 2)
    parts = torch.cat([logits_of(subject.classifier, part) for part in subject.images.split(half)])
    figures = {"alone differs by": apart(together, alone), "halves differ by": apart(together, parts)}
    faults = [f"logits {name} {value:.2%} of the largest" for name, value in figures.items() if not value <= SMALL]
    return verdict(faults, "neighbours change nothing", figures)


def no_parameter_gradients(subject: Subject) -> Verdict:
    """Guard: an attack leaves no gradient on any parameter, even when all of them want one (MMCoA leaks ten into each update)."""
    parameters, ball = list(subject.attacked.parameters()), subject.protocol.balls()[0]
    wanted = [(p, p.requires_grad, p.grad) for p in parameters]
    faults, figures = [], {}
    for p in parameters:
        p.requires_grad, p.grad = True, None
    try:
        for attack in subject.protocol.attacks:
            subject.attack(attack, ball, subject.attacked)
            figures[attack.name] = sum(p.grad is not None for p in parameters)
            faults += [f"{attack.name} leaves gradients on {figures[attack.name]} parameters"] if figures[attack.name] else []
            faults += [f"{attack.name} leaves parameters frozen"] if not all(p.requires_grad for p in parameters) else []
            for p in parameters:
                p.requires_grad, p.grad = True, None
    finally:
        for p, requires, grad in wanted:
            p.requires_grad, p.grad = requires, grad
    return verdict(faults, "attacks differentiate with respect to images alone", figures)


def prompts_of_the_checkpoint(subject: Subject) -> Verdict:
    """Guard: the scored weights, prompt and readout, after all attacks, equal the loaded checkpoint's (TAPT resets to random prompts)."""
    classifier = subject.classifier.base if isinstance(subject.classifier, Adaptive) else subject.classifier
    if subject.model is None or not isinstance(classifier, ZeroShotClassifier):
        return does_not_apply("the classifier is no ZeroShotClassifier of a known model")
    logits_of(subject.classifier, subject.images)
    scored = tensors_sha256({**classifier.clip.state_dict(), **worn(classifier)})
    loaded = models.load(subject.source).sha256 if subject.source else subject.model.sha256
    faults = [f"scored tensors {scored[:12]} are not those of the checkpoint, {loaded[:12]}"] if scored != loaded else []
    again = "of the checkpoint, loaded again" if subject.source else "of the model given (no source to load again)"
    if isinstance(subject.classifier, Adaptive) and classifier.prompt is not None:
        start = tensors_sha256(worn(subject.classifier.start))
        faults += [] if start == tensors_sha256(worn(classifier)) else ["it adapts from another prompt than the one it loaded"]
    return verdict(faults, f"scored tensors are those {again}", {"scored": scored, "loaded": loaded})


def eval_mode(subject: Subject) -> Verdict:
    """Guard: every module is in eval mode while it is attacked and scored (TeCoA attacks in train mode)."""
    training = [name or "the classifier" for name, module in subject.classifier.named_modules() if module.training]
    faults = [f"{training[0]} and {len(training) - 1} others are scored in train mode"] if training else []
    runs = {attack.name: subject.run(attack, subject.protocol.balls()[0]) for attack in subject.protocol.attacks}
    faults += [f"{name} attacks in train mode" for name, run in runs.items() if run.watch.training]
    return verdict(faults, "attacked and scored in eval mode", {"modules in train mode": len(training)})
