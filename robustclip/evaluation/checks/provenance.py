"""Is it known what was measured: keys that change with what they name, the model asked for and no other, a baseline beside it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.evaluation.checks.base import Subject, Verdict, does_not_apply, verdict
from robustclip.evaluation.checks.data import counted, of_model
from robustclip.evaluation.protocols import Resolved, TestSet
from robustclip.models import zoo
from robustclip.models.class_texts import Descriptions, as_json
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.model import Model
from robustclip.models.zoo import ZOO
from robustclip.records import metrics

NAMED = ("model_sha256", "prompts_hash", "protocol_hash", "result_key", "shard_sha256", "versions")


def keys_change(subject: Subject) -> Verdict:
    """Check 22: every row names weights, prompts, protocol and versions; one bit of a weight or one template changes its key."""
    faults: list[str] = []
    figures: dict[str, Any] = {}
    if subject.model is not None:
        weights, other = subject.model.sha256, one_bit_changed(subject.model).sha256
        figures |= {"weights": weights, "weights, one bit changed": other}
        faults += ["one bit changed in the weights keeps their hash"] if weights == other else []
    if subject.resolved is not None:
        faults += templates_without_effect(subject.resolved)
        figures["protocol"] = subject.resolved.hash
    if subject.records is not None:
        faults += rows_without_names(subject) + mixtures_accepted(subject)
    if subject.model is None and subject.resolved is None and subject.records is None:
        return does_not_apply("neither model nor protocol nor records were given")
    return verdict(faults, "keys change with weights and templates, and rows carry them", figures)


def one_bit_changed(model: Model) -> Model:
    """Return a copy of a model in which the lowest bit of one weight is flipped."""
    changed = model.copy()
    weight = next(p for p in changed.clip.parameters() if p.numel())
    with torch.no_grad():
        weight.data.view(-1)[:1].view(torch.uint8)[0] ^= 1
    return changed


def templates_without_effect(resolved: Resolved) -> list[str]:
    """Return what stays the same although one template was edited."""
    name, test_set = next(iter(resolved.sets.items()))
    edited = with_an_edit(test_set)
    other = replace(resolved, sets={**resolved.sets, name: edited})
    faults = ["one template edited keeps the prompts' hash"] if edited.prompts_hash == test_set.prompts_hash else []
    return faults + (["one template edited keeps the protocol's hash"] if other.hash == resolved.hash else [])


def with_an_edit(test_set: TestSet) -> TestSet:
    """Return the set with another first template, or another first description of its first class."""
    if test_set.descriptions is None:
        first, *others = test_set.card.templates
        return replace(test_set, card=replace(test_set.card, templates=(first + "!", *others)))
    name = test_set.card.class_names[0]
    first, *others = test_set.descriptions.texts[name]
    return replace(test_set, descriptions=Descriptions.said({**test_set.descriptions.texts, name: (first + "!", *others)}))


def rows_without_names(subject: Subject) -> list[str]:
    """Return what is missing or different in the rows: a null, other weights, other prompts, another protocol."""
    rows = of_model(subject)
    faults = [f"{rows[name].null_count} rows do not say their {name}" for name in NAMED if rows[name].null_count]
    if subject.model_sha256 and pc.unique(rows["model_sha256"]).to_pylist() != [subject.model_sha256]:
        faults.append("rows were made with other weights than were checked")
    if subject.resolved is not None:
        faults += ["rows are of another protocol"] if pc.unique(rows["protocol_hash"]).to_pylist() != [subject.resolved.hash] else []
        wanted = {name: test_set.prompts_hash for name, test_set in subject.resolved.sets.items()}
        other = {name for name, got in zip(rows["dataset"].to_pylist(), rows["prompts_hash"].to_pylist()) if wanted.get(name) != got}
        faults += [f"rows of {sorted(other)[0]!r} were made with other prompts"] if other else []
    return faults


def mixtures_accepted(subject: Subject) -> list[str]:
    """Return what may be compared although it must not: rows of two protocols, or of two weights under one name."""
    rows, faults = of_model(subject), []
    for column in ("protocol_hash", "model_sha256"):
        values = ["other", *rows[column].to_pylist()[1:]]
        mixed = rows.set_column(rows.schema.get_field_index(column), column, pa.array(values, pa.string()))
        try:
            counted(subject, mixed)
            faults.append(f"rows of two values of {column} are counted as one")
        except UserError as error:
            faults += [] if "protocols" in str(error) or "weights" in str(error) else [f"{column}: refused for another reason: {error}"]
    return faults


def right_activation(subject: Subject) -> Verdict:
    """Guard: the towers use the activation their weights were trained with (open_clip builds plain GELU for OpenAI's and only warns)."""
    if subject.model is None:
        return does_not_apply("no model was given")
    if subject.source is not None and subject.source.startswith(ZOO):
        zoo.check(subject.source)
    members, classifiers = (getattr(whole, "members", (whole,)) for whole in (subject.model, subject.classifier))  # an ensemble has several
    built, faults = [], []
    for model, classifier in zip(members, classifiers, strict=True):
        wanted = bool(model.open_clip_config["model_cfg"].get("quick_gelu", False))
        found = [type(module).__name__ for module in classifier.modules() if type(module).__name__ in ("QuickGELU", "GELU")]
        if wrong := [name for name in found if (name == "QuickGELU") != wanted]:
            faults.append(f"{len(wrong)} of {len(found)} activations are {wrong[0]}, the config says quick_gelu={wanted}")
        built += found
    return verdict(faults, f"{len(built)} activations as the config says", {"activations": sorted(set(built))})


def no_fallback(subject: Subject) -> Verdict:
    """Guard: a name that does not exist raises instead of giving another model (RobustVLM's loader falls back on any exception)."""
    wrong = f"{subject.source or 'model'}-that-does-not-exist"
    try:
        got = models.load(wrong)
    except UserError as error:
        return Verdict(True, "a wrong name is refused", {"said": str(error)})
    return Verdict(False, f"asked for {wrong!r}, the loader gave {got.name!r}", {})


def names_travel(subject: Subject) -> Verdict:
    """Guard: a trained checkpoint says its class names and templates, and the scored prompts are those the protocol wrote down."""
    if subject.model is None or not isinstance(subject.classifier, ZeroShotClassifier):
        return does_not_apply("the classifier is no ZeroShotClassifier of a known model")
    card, faults = subject.model.card, []
    if "run" in card:
        faults += [f"the checkpoint does not say its {name}" for name in ("class_names", "templates") if not card.get(name)]
    if subject.resolved is not None and subject.dataset in subject.resolved.sets:
        written, names = subject.resolved.describe()["sets"][subject.dataset], subject.classifier.class_names
        for name, scored in (("class_names", list(names)), ("templates", as_json(names, subject.classifier.wording))):
            if written[name] != scored:
                faults.append(f"scored with other {name} than the protocol's {str(written[name])[:200]}")
    said = card.get("templates", [])
    figures = {"trained with": [each if isinstance(each, str) else f"{len(each)} descriptions" for each in said]}
    return verdict(faults, "class names and templates are written down", figures)


def baseline_beside(subject: Subject) -> Verdict:
    """Guard: the undefended model is in the same run on the same images, and falls there (TTC: plain CLIP at 30.9, about 0 expected)."""
    if subject.records is None:
        return does_not_apply("no records of a run were given")
    if subject.baseline_name not in pc.unique(subject.records["model"]).to_pylist():
        return Verdict(False, f"the run holds no rows of an undefended model ({subject.baseline_name or 'none was named'})", {})
    outcomes = counted(subject, subject.records)
    chosen = {name: outcomes[name] for name in (subject.baseline_name, subject.name)}
    faults = refused(chosen)
    largest = subject.protocol.eps[-1]
    figures = {
        f"{name}, {dataset}, eps {largest:g}": metrics.accuracy(survival, largest).mean
        for name, each in chosen.items()
        for dataset, survival in each.items()
    }
    return verdict(faults, f"the undefended {subject.baseline_name} stands beside it on the same images", figures)


def refused(chosen: dict[str, Any]) -> Sequence[str]:
    try:
        metrics.check_same_images(chosen)
    except UserError as error:
        return [str(error)]
    return []
