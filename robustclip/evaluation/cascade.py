"""A cascade of attacks on one cell: from cheap to dear and upward in eps, survivors only."""

import json
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.attacks import Attack, Example
from robustclip.attacks.classes import for_classes
from robustclip.attacks.levels import Aimed
from robustclip.attacks.multimodal import Multimodal
from robustclip.attacks.pgd import logits_of
from robustclip.attacks.shift import Shifted
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.base.values import to_json
from robustclip.evaluation.rules import Protocol
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.records.rows import CLEAN, CLEAN_ONLY, NO_CLASS

TOLERANCE = 1e-6  # in pixel units: what adding and clamping in fp32 may cost


def run_cascade(
    classifier: ZeroShotClassifier,
    images: Tensor,
    labels: Tensor,
    ids: list[str],
    protocol: Protocol,
    attacks: Sequence[Attack] | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of images [N,3,H,W]: one for the clean image, then one per attack and eps that still found it correct.

    An image broken once is broken for every later attack and larger eps; its missing rows say so. The worst case is the exhaustive one,
    because an image's result depends on nothing but itself. Attacks run as they are defined on the classifier's number of classes: rows
    carry the name the protocol calls them by and, as `attack_config`, the settings they ran with; one left out there has no rows at all.
    `attacks` are those these images meet (default: the protocol's); with none of them, the clean rows say that nothing else was tried.
    An `independent` protocol shows every image, broken or not, to every attack at every eps: each attack's own accuracy, at its full price.
    Raises UserError naming an image whose clean logits are not finite; under attack such an image counts as broken, with NO_CLASS.
    """
    wanted = protocol.attacks if attacks is None else attacks
    started = time.perf_counter()
    logits = logits_of(classifier, images, ids, protocol.micro_batch)
    run = for_classes(wanted, logits.shape[1]) if wanted else {}
    predictions, sure = _refuse_no_class(_answers(logits), ids)
    seconds = (time.perf_counter() - started) / max(len(ids), 1)
    clean = predictions.tolist()
    rows: list[dict[str, Any]] = []
    for i, id_ in enumerate(ids):
        facts = {"confidence": float(sure[i]), "attack": CLEAN if run else CLEAN_ONLY, "eps": 0.0, "seconds": seconds}
        rows.append(_row(id_, int(labels[i]), clean[i], clean[i], **facts))
    alive = predictions == labels
    for ball in protocol.balls():
        for called, attack in run.items():
            survivors = torch.arange(len(ids), device=images.device) if protocol.independent else alive.nonzero()[:, 0]
            if not len(survivors):
                continue
            started, names = time.perf_counter(), [ids[i] for i in survivors.tolist()]
            example = attack(classifier, images[survivors], labels[survivors], names, ball, protocol.seed, protocol.micro_batch)
            attacked, sure = outcome(classifier, example, labels[survivors], names, protocol.micro_batch)
            seconds = (time.perf_counter() - started + example.spent) / len(survivors)
            seen = None if example.seen is None else predict(example.seen, example.images, names, protocol.micro_batch).tolist()
            shared = _facts(classifier, called, attack, ball, protocol.seed) | {"seconds": seconds}
            found = _of_images(example, moved(attack, ball, images[survivors], example.images).cpu())
            rights, said, confidence = labels[survivors].tolist(), attacked.tolist(), sure.tolist()
            for place, i in enumerate(survivors.tolist()):
                facts = shared | found[place] | {"confidence": confidence[place]}
                facts |= {} if seen is None else {"seen_prediction": seen[place]}
                rows.append(_row(ids[i], rights[place], clean[i], said[place], **facts))
            alive[survivors] = attacked == labels[survivors]
    return rows


class Answers(NamedTuple):
    """What a classifier says of images [N]: classes, NO_CLASS where a logit is not finite, and its probability of each, there 0."""

    classes: Tensor
    confidence: Tensor


def outcome(classifier: ZeroShotClassifier, example: Example, labels: Tensor, ids: list[str], micro_batch: int) -> Answers:
    """Return the answers to what an attack made of images with labels [N]: under the prompts it rewrote, if it did."""
    if example.class_texts is None:
        return _answers(logits_of(classifier, example.images, ids, micro_batch))
    logits = logits_of(classifier.reworded(example.class_texts), example.images, ids, micro_batch)
    if example.label_known:
        own = F.one_hot(labels, logits.shape[1]).bool()
        logits = torch.where(own, logits, logits_of(classifier, example.images, ids, micro_batch))
    return _answers(logits)


def predict(classifier: nn.Module, images: Tensor, ids: list[str], micro_batch: int) -> Tensor:
    """Return the predicted classes [N], computed in micro-batches of one size; NO_CLASS where a logit is not finite."""
    return _answers(logits_of(classifier, images, ids, micro_batch)).classes


def _answers(logits: Tensor) -> Answers:
    finite = logits.isfinite().all(1)
    confidence = logits.double().softmax(1).amax(1)
    return Answers(torch.where(finite, logits.argmax(1), NO_CLASS), torch.where(finite, confidence, 0.0))


def _refuse_no_class(answers: Answers, ids: list[str]) -> Answers:
    if bad := (answers.classes == NO_CLASS).nonzero()[:, 0].tolist():
        raise UserError(
            f"image {ids[bad[0]]!r}: the model's logits of the clean image are not finite ({len(bad)} such images of {len(ids)}); "
            "look for NaN in its weights or its pixels"
        )
    return answers


def _row(image_id: str, label: int, clean: int, prediction: int, **facts: Any) -> dict[str, Any]:
    known = {"image_id": image_id, "label": label, "clean_prediction": clean, "prediction": prediction, "correct": prediction == label}
    return known | facts


def moved(attack: Attack, ball: Ball, images: Tensor, attacked: Tensor) -> Tensor:
    """Return by how much an attack moved images [N,3,H,W]; raises RuntimeError when it left its ball or [0,1]."""
    delta = attacked - images
    if not bool((ball.size(delta) <= ball.radius + TOLERANCE).all()) or bool((attacked - 0.5).abs().max() > 0.5):
        size = float(ball.size(delta).max()) * 255
        raise RuntimeError(f"{attack.name} left its ball: {ball.norm} {size:.4f}/255 for eps {ball.eps:g}/255")
    return delta


def _facts(classifier: nn.Module, called: str, attack: Attack, ball: Ball, seed: int) -> dict[str, Any]:
    """Return what the records say of an attack on all its images."""
    return {
        "attack": called,
        "attack_config": json.dumps(to_json(attack), sort_keys=True),
        "norm": ball.norm,
        "eps": float(ball.eps),
        "seed": seed,
        "restarts": getattr(attack, "restarts", None),
        **({"level": attack.says(classifier)} if isinstance(attack, Aimed | Shifted) else {}),
        "text_budget": str(attack.text.budget) if isinstance(attack, Multimodal) else None,
    }


def _of_images(example: Example, deltas: Tensor) -> list[dict[str, Any]]:
    """Return what the records say of each attacked image, moved by `deltas` [N,3,H,W] on the CPU: a GPU is asked once for all of them."""
    found: list[dict[str, Any]] = [{"linf": float(delta.abs().max()), "l2": float(delta.norm())} for delta in deltas]
    trace = example.trace
    if trace is None:
        return found
    names = ("loss_start", "loss_best", "loss_end", "zero_gradient", "nonfinite_gradient")
    traced = [getattr(trace, name).tolist() for name in ("first_success", "forwards", *names)]
    for facts, success, forwards, *values in zip(found, *traced, strict=True):
        known = {name: value for name, value in zip(names, values, strict=True) if not math.isnan(value)}  # NaN: the attack did not look
        facts |= known | {"first_success": success if success >= 0 else None, "forwards": forwards}
    return found
