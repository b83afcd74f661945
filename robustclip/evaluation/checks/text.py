"""Do attacks on prompts do what their budget says: never more than it, never for the worse, the same every time."""

from typing import Any

from robustclip.attacks.multimodal import Multimodal
from robustclip.attacks.text.rewriting import Rewritten
from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.words import OtherNames, Prompt, distance, prompts_of
from robustclip.evaluation.checks.base import Subject, Verdict, does_not_apply, verdict
from robustclip.models.classifier import ZeroShotClassifier

SOME = 12  # prompts, of the first classes


def prompts_in_budget(subject: Subject) -> Verdict:
    """Guard: rewritten prompts stay within their budget and scope, name no other class, and come out the same again."""
    attacks = () if subject.resolved is None else subject.resolved.protocol.attacks
    texts = {attack.text.name: attack.text for attack in attacks if isinstance(attack, Multimodal)}
    if not texts or not isinstance(subject.classifier, ZeroShotClassifier):
        return does_not_apply("no attack of the protocol rewrites prompts")
    faults: list[str] = []
    figures: dict[str, Any] = {}
    for name, text in texts.items():
        some = fewer(subject.classifier)
        found = text(some)
        figures[name] = {"prompts": len(found.texts), "changed": sum(a != b for a, b in zip(found.clean, found.texts, strict=True))}
        faults += [f"{name}: {fault}" for fault in outside(text, some, found)]
        faults += [f"{name} rewrites the same prompts otherwise the second time"] if text(some) != found else []
    return verdict(faults, "every rewritten prompt is in its budget", figures)


def fewer(classifier: ZeroShotClassifier) -> ZeroShotClassifier:
    """Return the classifier of the first classes alone, with no more than SOME prompts where that leaves two classes."""
    names = classifier.class_names[: max(2, SOME // len(classifier.templates))]
    parts = (classifier.clip, classifier.tokenizer, classifier.preprocess, names, classifier.templates, classifier.prompt)
    return ZeroShotClassifier(*parts).to(classifier.mean.device).eval()


def outside(text: TextAttack, classifier: ZeroShotClassifier, found: Rewritten) -> list[str]:
    """Return what is wrong with rewritten prompts, first prompt first."""
    clean = prompts_of(classifier.class_names, classifier.templates)
    others, faults = OtherNames(classifier.class_names), []
    for i, (prompt, now) in enumerate(zip(clean, found.texts, strict=True)):
        spent = distance(prompt.text, now) if text.source.unit == "edits" else distance(prompt.words, as_words(now))
        if spent > text.units:
            faults.append(f"{prompt.text!r} became {now!r}: {spent} {text.source.unit}, the budget is {text.budget}")
        outer = (prompt.before, prompt.after)
        if text.budget.scope == "class name" and not (now.startswith(outer[0]) and now.endswith(outer[1])):
            faults.append(f"{prompt.text!r} became {now!r}: the budget is of the class name alone")
        elif not text.collisions and others.collide(i // len(classifier.templates), prompt, Prompt("", now, "")):
            faults.append(f"{prompt.text!r} became {now!r}, which names another class")
    return faults


def as_words(text: str) -> list[str]:
    return Prompt("", text, "").words
