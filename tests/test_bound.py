"""Columns of one set of a study: the same images among few and among many class names, paired by image."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from robustclip.attacks.catalogue import named as attacks_named
from robustclip.base.errors import UserError
from robustclip.evaluation import protocols
from robustclip.evaluation.protocols import Resolved, resolve
from robustclip.records import rows as records
from robustclip.records.findings import Finding
from robustclip.reproduction import page
from robustclip.reproduction.ledger import Claim, Part
from robustclip.reproduction.measuring import Evaluated, columns_of, measured, result
from robustclip.reproduction.rules import REFUTED, SHOWN, UNDECIDED, Rule
from robustclip.reproduction.worlds import CLEAN, Bound, Spec

ROOT = Path(__file__).resolve().parent.parent
(CLAIM,) = (claim for claim in page.papers(str(ROOT / "claims"))["mmcoa"].claims if claim.name == "classes")
FEW, MANY, TEXT = "chess", "among:faces:chess", "text:clip_knn-1w"
SPECS: dict[str, Spec] = {
    "clean-few": Bound(CLEAN, FEW),
    "text-few": Bound("text:*", FEW),
    "clean-many": Bound(CLEAN, MANY),
    "text-many": Bound("text:*", MANY),
}
Flags = tuple[np.ndarray, np.ndarray]  # right clean, right under rewritten prompts, by id in order


def resolved_of(n: int, out: Path, *sets: str) -> Resolved:
    study = protocols.named("study")
    return resolve(replace(study, sets=sets or (FEW, MANY), n=n, attacks=attacks_named([TEXT])), str(out))


def table_of(resolved: Resolved, flags: Mapping[str, Flags]) -> pa.Table:
    """Return the records of a model of which `flags` say what stands, set by set; those of every other set in the reverse order."""
    rows = []
    for i, (name, (clean, text)) in enumerate(flags.items()):
        shared = {"model": "clip", "model_sha256": "0", "protocol_hash": resolved.hash, "dataset": name, "label": 0}
        each = []
        for image, right, stands in zip(sorted(resolved.sets[name].ids), clean, text, strict=True):
            met = [("clean", 0.0, right), *([(TEXT, 2.0, stands)] if right else [])]
            for attack, eps, correct in met:
                row = {"image_id": image, "attack": attack, "eps": eps, "prediction": int(not correct), "correct": bool(correct)}
                each.append(shared | row)
        rows += each[:: -1 if i % 2 else 1]
    return records.table(rows)


def evaluated(table: pa.Table, resolved: Resolved, specs: Mapping[str, Spec]) -> Evaluated:
    checks = {"clip": [Finding("1", "made", "hard", True, "")]}
    return Evaluated(resolved, {"clip": ["clip"]}, columns_of(table, resolved, specs), checks)


def judged(claim: Claim, whole: Evaluated) -> tuple[str, str]:
    found = result(claim, "rule", whole, (), "2026-11-30")
    return found.verdict, found.why


def test_planted_claims_true_wrong_and_of_no_difference(tmp_path: Path) -> None:
    """Of 120 images all are right clean; 90 stand among few names and 30 of these among many, then the reverse, then the same."""
    resolved, place = resolved_of(120, tmp_path), np.arange(120)
    every, most, few = place >= 0, place < 90, place < 30
    found = {}
    for few_names, many_names in ((most, few), (few, most), (most, most)):
        table = table_of(resolved, {FEW: (every, few_names), MANY: (every, many_names)})
        found[len(found)] = judged(CLAIM, evaluated(table, resolved, SPECS))
    assert found == {0: (SHOWN, ""), 1: (REFUTED, ""), 2: (UNDECIDED, "the interval holds 0")}


def test_a_difference_of_damages_by_hand(tmp_path: Path) -> None:
    """Few names lose 2 of 6 images, many lose 3: (4 - 1) / 6 - (5 - 3) / 6 = 16.67 points of 6 images, of which 3 have a value."""
    resolved = resolved_of(6, tmp_path)
    few = np.array([1, 1, 1, 1, 1, 0]), np.array([1, 1, 1, 0, 0, 0])
    many = np.array([1, 1, 1, 1, 0, 0]), np.array([1, 0, 0, 0, 0, 0])
    whole = evaluated(table_of(resolved, {FEW: few, MANY: many}), resolved, SPECS)
    found = measured(CLAIM.parts[0], whole)
    assert (found.estimate, found.n, found.deciding, found.seeds) == (16.67, 6, 3, (16.67,))
    both = measured(Part({"clip clean": 1.0}, Rule("above", 0.0)), whole)
    assert (both.estimate, both.n) == (75.0, 12)  # a column that is bound to no set is the mean over both


def test_images_that_are_in_one_set_alone_are_named(tmp_path: Path) -> None:
    resolved, every = resolved_of(6, tmp_path), np.ones(6, dtype=bool)
    table, lost = table_of(resolved, {FEW: (every, every), MANY: (every, every)}), sorted(resolved.sets[MANY].ids)[2]
    cut = table.filter(pc.invert(pc.and_(pc.equal(table["dataset"], MANY), pc.equal(table["image_id"], lost))))
    with pytest.raises(UserError, match=f"differ in 1 images of set 'chess', such as '{lost}'"):
        measured(CLAIM.parts[0], evaluated(cut, resolved, SPECS))


def test_columns_of_other_images_are_refused(tmp_path: Path) -> None:
    resolved, every = resolved_of(6, tmp_path, FEW, "faces"), np.ones(6, dtype=bool)
    table = table_of(resolved, {FEW: (every, every), "faces": (every, every)})
    other = {name: Bound(spec.of, "faces") if spec.set == MANY else spec for name, spec in SPECS.items() if isinstance(spec, Bound)}
    with pytest.raises(UserError, match=r"is of images of faces and 'clip clean-few' of chess; give all columns"):
        measured(CLAIM.parts[0], evaluated(table, resolved, other))
    mixed = Part({"clip text-few": 1.0, "clip clean": -1.0}, Rule("below", 0.0))
    with pytest.raises(UserError, match=r"'clip text-few' is of images of chess and 'clip clean' of chess, faces"):
        measured(mixed, evaluated(table, resolved, other))
