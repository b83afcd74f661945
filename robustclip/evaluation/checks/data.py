"""Are the right images counted, once each, and in the worst case: ids, coverage, aggregation, class counts, selection."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from robustclip.attacks import Attack, Example
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.data.reading import stratified
from robustclip.evaluation import cascade
from robustclip.evaluation.checks.ball import declared
from robustclip.evaluation.checks.base import Subject, Verdict, does_not_apply, verdict
from robustclip.evaluation.protocols import TestSet
from robustclip.records import metrics, survival
from robustclip.records import rows as records

VOID = 0.01  # of a set's images: ImageNet's usual names have two pairs that are read as one, which move its accuracy by less


def enough_classes(subject: Subject) -> Verdict:
    """Check 15: DLR needs 3 classes, targeted DLR 4, t targets need t + 1; labels are classes; a binary set is flagged."""
    with torch.no_grad():
        outputs = subject.classifier(subject.images[:1]).shape[1]
    faults = [f"{outputs} logits for {subject.classes} classes"] if outputs != subject.classes else []
    if not 0 <= int(subject.labels.min()) <= int(subject.labels.max()) < subject.classes:
        faults.append(f"labels {int(subject.labels.min())} to {int(subject.labels.max())} for {subject.classes} classes")
    needed = {attack.name: classes_needed(attack) for attack in subject.protocol.attacks}
    faults += [f"{name} needs {least} classes, there are {subject.classes}" for name, least in needed.items() if least > subject.classes]
    note = "; binary: DLR losses do not apply" if subject.classes == 2 else ""
    return verdict(faults, f"{subject.classes} classes are enough{note}", {"classes": subject.classes, "logits": outputs})


def classes_needed(attack: Attack) -> int:
    """Return the fewest classes an attack is defined for, by its declared loss and targets."""
    settings = declared(attack)
    loss, targets = str(settings.get("loss", "")).lower(), settings.get("targets") or 0
    dlr = 4 if "dlr" in loss and (targets or "target" in loss) else 3 if "dlr" in loss else 2
    return max(dlr, targets + 1)


def every_row_visited(subject: Subject) -> Verdict:
    """Check 16: the ids are the fixed stratified ones, classes are covered, and every set and image of the protocol has its rows."""
    if subject.resolved is None or subject.records is None:
        return does_not_apply("no records of a run were given")
    protocol, rows = subject.resolved.protocol, of_model(subject)
    found = Counter(rows["dataset"].to_pylist())
    faults = [f"set {name!r} has no rows" for name in protocol.sets if name not in found]
    faults += [f"set {name!r} is not in the protocol" for name in found if name not in protocol.sets]
    figures: dict[str, Any] = {}
    for name, test_set in subject.resolved.sets.items():
        faults += [f"set {name!r}: {fault}" for fault in unevenly_chosen(test_set, protocol.n)]
        mine = rows.filter(pc.equal(rows["dataset"], name))
        faults += [f"set {name!r}: {fault}" for fault in unvisited(mine, test_set)]
    if not faults:
        for name, survival in next(iter(counted(subject, rows).values())).items():
            for column in survival.columns:
                figures[f"{name}, {column}"] = vars(metrics.accuracy(survival, column))
    return verdict(faults, f"{sum(found.values())} rows, every set and image of the protocol among them", figures)


def of_model(subject: Subject) -> pa.Table:
    """Return the rows of this model."""
    assert subject.records is not None
    return subject.records.filter(pc.equal(subject.records["model"], subject.name))


def unevenly_chosen(test_set: TestSet, n: int | None) -> list[str]:
    """Return what is wrong with the choice of images: not the stratified ids, or a class with fewer than its share."""
    faults = [] if np.array_equal(test_set.rows, stratified(test_set.index, n)) else ["its images are not the fixed stratified ones"]
    classes = len(test_set.index.class_names)  # without the names that another set lends
    there, chosen = (np.bincount(test_set.index.label[rows], minlength=classes) for rows in (slice(None), test_set.rows))
    short = np.flatnonzero(chosen < np.minimum(there, len(test_set.rows) // classes))
    return faults + ([f"class {test_set.card.class_names[short[0]]!r} has {chosen[short[0]]} images"] if len(short) else [])


def unvisited(rows: pa.Table, test_set: TestSet) -> list[str]:
    """Return what is wrong with the rows of one set: images missing or too many, labels that are not theirs, rows nobody computed."""
    clean = rows.filter(pc.equal(rows["attack"], records.CLEAN))
    label_of = dict(zip(test_set.ids, test_set.index.label[test_set.rows].tolist()))
    seen = Counter(clean["image_id"].to_pylist())
    missing = [id_ for id_ in label_of if seen[id_] != 1]
    faults = [f"{len(missing)} images without exactly one clean row, such as {missing[0]!r}"] if missing else []
    pairs = list(zip(rows["image_id"].to_pylist(), rows["label"].to_pylist()))
    wrong = [id_ for id_, label in pairs if label_of.get(id_) != label]
    faults += [f"{len(wrong)} rows with a label or an image that is not the set's, such as {wrong[0]!r}"] if wrong else []
    idle = [id_ for id_, passes in zip(rows["image_id"].to_pylist(), rows["forwards"].to_pylist()) if passes == 0]
    return faults + ([f"{len(idle)} attacked rows without one forward pass, such as {idle[0]!r}"] if idle else [])


def same_ids(subject: Subject) -> Verdict:
    """Guard: clean and robust accuracy are of the same ids (FARE: clean on the full set, robust on 1000)."""
    if subject.records is None:
        return does_not_apply("no records of a run were given")
    rows, faults, figures = of_model(subject), [], {}
    for name in pc.unique(rows["dataset"]).to_pylist():
        mine = rows.filter(pc.equal(rows["dataset"], name)).to_pylist()
        clean = {row["image_id"]: row["correct"] for row in mine if row["attack"] == records.CLEAN}
        attacked = {row["image_id"] for row in mine if row["attack"] != records.CLEAN}
        right = {id_ for id_, correct in clean.items() if correct}
        figures[name] = {"clean": len(clean), "right when clean": len(right), "attacked": len(attacked)}
        if attacked - clean.keys() or right - attacked:
            faults.append(f"{name}: clean accuracy is of {len(clean)} images, {len(right)} of them right, {len(attacked)} were attacked")
    return verdict(faults, "clean and robust accuracy are of the same images", figures)


class Bright(nn.Module):
    """Two classes, told by whether the mean pixel is above one half."""

    def forward(self, images: Tensor) -> Tensor:
        level = images.flatten(1).mean(1) - 0.5
        return torch.stack([-level, level], 1)


@dataclass(frozen=True)
class Breaks:
    """An attack that darkens the images whose number in the probe leaves `rest` when divided by 2, and remembers whom it met."""

    rest: int
    met: list[str]

    @property
    def name(self) -> str:
        return f"breaks-{self.rest}"

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, ids: list[str], ball: Ball, seed: int, micro_batch: int | None = None
    ) -> Example:
        self.met.extend(ids)
        mine = torch.tensor([int(id_) % 2 == self.rest for id_ in ids])[:, None, None, None]
        return Example(torch.where(mine, images - ball.radius, images))


def worst_case_per_image(subject: Subject) -> Verdict:
    """Check 17: two attacks that break disjoint halves leave 0 %, broken images are not attacked again, records agree with a recount."""
    met: tuple[list[str], list[str]] = ([], [])
    attacks = tuple(Breaks(rest, seen) for rest, seen in enumerate(met))
    protocol = replace(subject.protocol, attacks=attacks, eps=(4.0,), norm="Linf", independent=False)
    images, labels, ids = torch.full((8, 3, 2, 2), 0.505), torch.ones(8, dtype=torch.long), [str(i) for i in range(8)]
    rows = cascade.run_cascade(Bright(), images, labels, ids, protocol)  # type: ignore[arg-type]
    shared = {"model": "bright", "model_sha256": "none", "dataset": "halves", "protocol_hash": "none"}
    names = [attack.name for attack in attacks]
    outcome = survival.worst_case(records.table(shared | row for row in rows), names, protocol.eps)["bright"]["halves"]
    measured = metrics.accuracy(outcome, 4.0).mean
    faults = [f"two attacks that break disjoint halves leave {measured:.0%}, not 0 %"] if measured else []
    faults += ["broken images are attacked again"] if sorted(met[1]) != [id_ for id_ in ids if int(id_) % 2] else []
    return verdict(
        faults + recount(subject), "worst case per image", {"disjoint halves leave": measured, "left for the second attack": len(met[1])}
    )


def counted(subject: Subject, rows: pa.Table) -> dict[str, dict[str, survival.Survival]]:
    """Return the worst case per image of a run's rows, as its protocol tells which attacks a set goes without."""
    protocol, skips = (subject.protocol, None) if subject.resolved is None else (subject.resolved.protocol, subject.resolved.skips)
    return survival.worst_case(rows, [attack.name for attack in protocol.attacks], protocol.eps, skips, protocol.apart)


def recount(subject: Subject) -> list[str]:
    """Return a fault where the metrics count other images robust than a plain walk over the rows does."""
    if subject.records is None:
        return []
    rows, faults = of_model(subject), []
    protocol = subject.protocol if subject.resolved is None else subject.resolved.protocol
    try:
        outcomes = counted(subject, rows)
    except UserError as error:
        return [str(error)]
    for name, seen in next(iter(outcomes.values())).items():
        mine = [row for row in rows.filter(pc.equal(rows["dataset"], name)).to_pylist() if row["attack"] not in protocol.apart]
        for eps in protocol.eps:
            broken = {row["image_id"] for row in mine if row["eps"] <= eps and row["prediction"] != row["label"]}
            if int(seen.flags(eps).sum()) != len({row["image_id"] for row in mine} - broken):
                faults.append(
                    f"{name} at eps {eps:g}: the metrics count {int(seen.flags(eps).sum())} images robust, the rows say otherwise"
                )
    return faults


def selection_apart(subject: Subject) -> Verdict:
    """Check 21: no reported image served for training or selection; classes that training shares with the set are printed."""
    trained = [] if subject.model is None else subject.model.card.get("class_names", [])
    named = subject.resolved.sets[subject.dataset].card.class_names if subject.resolved and subject.dataset in subject.resolved.sets else ()
    shared = sorted({name.lower() for name in trained} & {name.lower() for name in named})
    figures: dict[str, Any] = {"classes shared with training": shared}
    if subject.selection_ids is None:
        return does_not_apply("the ids of training and selection were not given")._replace(figures=figures)
    reported = set(subject.ids)
    if subject.resolved is not None:
        reported |= {id_ for test_set in subject.resolved.sets.values() for id_ in test_set.ids}
    both = sorted(reported & subject.selection_ids)
    figures |= {"reported": len(reported), "selection": len(subject.selection_ids), "in both": len(both)}
    faults = [f"{len(both)} of {len(reported)} reported images served for training or selection, such as {both[0]!r}"] if both else []
    overlap = f"; training shares {len(shared)} of {len(named)} classes" if shared else ""
    return verdict(faults, f"no reported image served for training or selection{overlap}", figures)


def classes_told_apart(subject: Subject) -> Verdict:
    """Guard: no set has more than VOID of its attacked images in classes whose prompts are one text to the model: no attack tells them."""
    if subject.model is None or subject.resolved is None or subject.model.readout is not None:
        return does_not_apply("no sets were given, or the model reads no class names")
    faults, figures, note = [], {}, ""
    for name, test_set in subject.resolved.sets.items():
        reading = subject.model.names_read(test_set.card.class_names, test_set.templates)
        labels = test_set.index.label[test_set.rows[: subject.resolved.protocol.attacked]]
        void = float(np.isin(labels, list(reading.twins)).mean())
        figures[name] = {"classes read as another": len(reading.twins), "images of them": void}
        if reading.twins:
            said = f"{void:.1%} of the images of {name} are of classes read as one: {reading.groups}"
            faults += [said] if void > VOID else []
            note += "" if void > VOID else f"; {said}"
    return verdict(faults, f"the model tells the classes apart{note}", figures)
