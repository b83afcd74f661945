"""Is the attacked thing the scored thing: one forward, preprocessing and prompts inside it, no optimisation hidden in it."""

from typing import Any

import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.evaluation.checks.base import SMALL, Subject, Verdict, apart, does_not_apply, input_gradient, logits_of, share, verdict
from robustclip.evaluation.checks.data import of_model
from robustclip.evaluation.checks.strength import beyond, strongest, too_many
from robustclip.evaluation.checks.watch import backward_calls
from robustclip.models.adaptive import Adaptive
from robustclip.models.class_texts import listed, value_of
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.model import tensors_sha256, worn
from robustclip.records.findings import GREY_BOX, WHITE_BOX
from robustclip.records.rows import NO_CLASS

SEEN = 0.5  # share of the images whose margin must have a gradient for an attack to see the model


def defence_in_the_graph(subject: Subject) -> Verdict:
    """Check 11: the attacked forward is the scored one, with a gradient; optimisation inside it is grey-box to a static attack.

    It is also shown the attacked pixels: scoring does not round them to the 8 bits of stored images, where a comparison of stored images
    would see nothing. Of an Adaptive it is known where the optimisation ends: any attack on it is BPDA.
    """
    scored, attacked, off_grid = subject.classifier, subject.attacked, subject.off_grid
    difference = apart(*(torch.cat([logits_of(each, images) for images in (subject.images, off_grid)]) for each in (scored, attacked)))
    moved = 255 * float((shown_when_scored(subject, off_grid) - off_grid).abs().max())
    g = input_gradient(attacked, subject.images, subject.labels, loss="margin")
    sees = 0.0 if g is None else share(torch.isfinite(g).flatten(1).all(1) & (g != 0).flatten(1).any(1))
    with torch.no_grad():
        calls = backward_calls(scored, subject.images[:1])
    figures = {"same object": attacked is scored, "logits differ by": difference, "images with a gradient": sees, "gradient calls": calls}
    figures["scored pixels moved by 1/255 x"] = moved
    faults = [f"scoring moves attacked pixels by up to {moved:.2g}/255, as an 8-bit file in between does"] if moved else []
    if subject.protocol.level != WHITE_BOX:
        return verdict(faults, f"{GREY_BOX} (level {subject.protocol.level!r})", figures)
    if not difference <= SMALL:
        faults.append(f"the attacks were given another model than is scored: logits differ by {difference:.1%} of the largest")
    if sees < SEEN:
        faults.append(f"the attacks see a gradient on {sees:.0%} of the images only")
    if calls and not isinstance(attacked, Adaptive):
        faults.append(f"the forward optimises ({calls} gradient calls): it needs an adaptive attack, else the level is grey-box")
    return verdict(faults, "the scored forward is the attacked one", figures)


def shown_when_scored(subject: Subject, images: Tensor) -> Tensor:
    """Return the pixels [N,3,H,W] that the scored classifier is shown when these images are scored, without those that fill up a batch."""
    shown: list[Tensor] = []
    handle = subject.classifier.register_forward_pre_hook(lambda module, args: shown.append(args[0]))
    try:
        subject.predictions(images)
    finally:
        handle.remove()
    return torch.cat(shown)[: len(images)]


def preprocessing_inside(subject: Subject) -> Verdict:
    """Check 14: attacks act on stored pixels in [0,1]; the tower sees them normalised once, with the constants of its own weights."""
    low, high = float(subject.images.min()), float(subject.images.max())
    figures: dict[str, Any] = {"lowest pixel": low, "highest pixel": high}
    faults = [f"the attack was given pixels in [{low:.2f}, {high:.2f}], not in [0,1]"] if low < 0 or high > 1 else []
    if not isinstance(subject.attacked, ZeroShotClassifier) or subject.model is None:
        return verdict(faults, "", figures) if faults else does_not_apply("the classifier is no ZeroShotClassifier of a known model")
    wanted = subject.model.preprocess
    figures |= {"attacked at px": subject.images.shape[-1], "model input px": wanted.size, "resize": "inside the classifier"}
    # Resized here, so that what the tower sees of these is the normalisation alone.
    sized = F.interpolate(subject.images, (wanted.size, wanted.size), mode="bilinear").clamp(0, 1)
    expected = (sized - constants(wanted.mean, sized)) / constants(wanted.std, sized)
    if subject.attacked.prompt is not None:
        expected = subject.attacked.prompt.on_pixels(expected)
    difference = float((seen_by_tower(subject.attacked, sized) - expected).abs().max())
    figures["normalised pixels differ by"] = difference
    if not difference < 1e-4:
        faults.append(f"the tower sees pixels {difference:.2f} away from (x - mean) / std of its weights {wanted.mean}, {wanted.std}")
    larger = F.interpolate(subject.images[:1], scale_factor=2, mode="bilinear")
    if seen_by_tower(subject.attacked, larger).shape[-1] != wanted.size:
        faults.append("images of another size are not resized inside the classifier")
    return verdict(faults, f"normalised and resized inside; attacked at {subject.images.shape[-1]} px", figures)


def constants(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values).view(3, 1, 1).to(like)


def seen_by_tower(classifier: ZeroShotClassifier, images: Tensor) -> Tensor:
    """Return what the visual tower is given for images; it is then fed blanks of its own size, so that any size can be asked about."""
    seen: list[Tensor] = []
    size = classifier.preprocess.size

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0])
        return (args[0].new_zeros(len(args[0]), 3, size, size),)

    visual: nn.Module = classifier.clip.visual  # type: ignore[assignment]
    handle = visual.register_forward_pre_hook(look)
    try:
        logits_of(classifier, images)
    finally:
        handle.remove()
    return seen[0]


def same_prompts(subject: Subject) -> Verdict:
    """Check 18: the attacked prompts, of text and pixels, are the scored ones and the set's, but of a prompt shift those that it names.

    Those of training break no more.
    """
    scored, attacked = subject.classifier, subject.attacked
    if not isinstance(scored, ZeroShotClassifier) or not isinstance(attacked, ZeroShotClassifier):
        return does_not_apply("the classifier is no ZeroShotClassifier")
    figures: dict[str, Any] = {"templates": listed(scored.wording), "prompt": type(scored.prompt).__name__}
    faults = shifted_otherwise(subject)
    if (attacked.class_names, attacked.wording) != (scored.class_names, scored.wording):
        faults.append(f"attacked with templates {listed(attacked.wording)}, scored with {listed(scored.wording)}")
    if not torch.equal(attacked.class_embeddings, scored.class_embeddings):
        faults.append("attacked and scored class embeddings differ")
    if tensors_sha256(worn(attacked)) != tensors_sha256(worn(scored)):
        faults.append("attacked without the scored prompt or readout")
    if subject.resolved is not None and subject.dataset in subject.resolved.sets:
        test_set = subject.resolved.sets[subject.dataset]
        own = scored.prompt is not None and scored.prompt.template is not None  # then its own words are those it was made for
        wanted = scored.wording if own else value_of(test_set.templates)
        if (tuple(test_set.card.class_names), wanted) != (scored.class_names, scored.wording):
            faults.append(f"scored with templates {listed(scored.wording)}, the set's are {listed(test_set.templates)}")
    said = [] if subject.model is None else subject.model.card.get("templates", ())
    templates = tuple(each for each in said if isinstance(each, str))  # descriptions are of the classes of training
    trained = subject.model.classifier(scored.class_names, templates).to(subject.images.device) if subject.model and templates else None
    if trained is not None and trained.wording != scored.wording:
        for ball in subject.protocol.balls():
            broken = beyond(subject.worst(ball), subject.run(strongest(subject), ball, trained).right)
            figures[f"training prompt at {ball}: broken beyond"] = broken
            if too_many(broken, len(subject.images)):
                faults.append(f"attacked with its training prompt the model loses {broken} more images at {ball}")
    return verdict(faults, "one prompt for attack and scoring", figures)


def shifted_otherwise(subject: Subject) -> list[str]:
    """Return a fault where attacks of a prompt shift fooled something else than the model under the texts that their rows name.

    An attack knows whether it fooled what it saw; the row has what the model under those texts answers.
    """
    if subject.records is None:
        return []
    seen = of_model(subject).filter(pc.field("seen_prediction").is_valid() & pc.field("forwards").is_valid())
    rows = [row for row in seen.to_pylist() if row["seen_prediction"] != NO_CLASS]
    wrong = [row for row in rows if (row["first_success"] is None) != (row["seen_prediction"] == row["label"])]
    if not too_many(len(wrong), len(rows)):
        return []
    return [f"{wrong[0]['attack']} did not see those texts: on {len(wrong)} of {len(rows)} images they answer otherwise than what it saw"]


def entry_rule(subject: Subject) -> Verdict:
    """Check 19: RobustBench's entry rule as three booleans: non-zero gradients, a deterministic forward, no optimisation at inference."""
    g = input_gradient(subject.classifier, subject.images, subject.labels, loss="margin")
    with torch.no_grad():
        first = subject.classifier(subject.images)
        repeats = all(torch.equal(first, subject.classifier(subject.images)) for _ in range(2))
    figures = {
        "non-zero gradients": g is not None and bool((g != 0).any()),
        "deterministic forward": repeats,
        "no optimisation at inference": backward_calls(subject.classifier, subject.images[:1]) == 0,
    }
    return verdict([f"not true: {name}" for name, true in figures.items() if not true], "all three hold", figures)
