"""The cascade: the same worst case as attacking everything with everything, in rows that packing does not change."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import Linear, ids_of, middle

from robustclip.attacks import APGD, APGDT, PGD, Example, Noise
from robustclip.attacks.classes import reductions
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.evaluation import cascade
from robustclip.evaluation.cascade import predict, run_cascade
from robustclip.evaluation.protocols import Protocol
from robustclip.records import metrics, survival
from robustclip.records import rows as records

NAMES, TEMPLATES, N = ["red", "green", "blue", "grey"], ["a photo of a {}."], 40
ATTACKS = (PGD(1, alpha=1.0, random_start=False), PGD(5), APGD(5))


def protocol(**changes):
    settings = {"name": "test", "sets": ("toy",), "attacks": ATTACKS, "eps": (0.5, 2.0, 8.0), "micro_batch": 8, "seed": 3}
    return Protocol(**(settings | changes))


@pytest.fixture(scope="module")
def task(make_model, pictures):
    """Return a classifier, 40 images, labels of which it gets 35 right, and ids."""
    classifier = make_model().classifier(NAMES, TEMPLATES)
    x, _, ids = pictures(N)
    with torch.no_grad():
        y = classifier(x).argmax(1)
    y[::8] = (y[::8] + 1) % 4
    return classifier, x, y, ids


@pytest.fixture(scope="module")
def cascaded(task):
    """Return the rows of the cascade, for all tests that look at them."""
    return run_cascade(*task, protocol())


@pytest.fixture(scope="module")
def exhaustive(task):
    """Return {(eps, attack, id): prediction}: every image, right or wrong, under every attack; nothing is skipped or repacked."""
    (classifier, x, y, ids), chosen, found = task, protocol(), {}
    for eps in chosen.eps:
        for attack in chosen.attacks:
            for part in torch.arange(N).split(chosen.micro_batch):
                images = attack(classifier, x[part], y[part], [ids[i] for i in part], Ball("Linf", eps), chosen.seed).images
                with torch.no_grad():
                    predictions = classifier(images).argmax(1)
                found |= {(eps, attack.name, ids[i]): int(p) for i, p in zip(part.tolist(), predictions)}
    return found


def worst(rows, ids, protocol):
    """Return {(eps, id): right under clean and every attack up to eps}, where a missing row means: broken before."""
    broken_at = {row["image_id"]: row["eps"] for row in rows if not row["correct"]}
    return {(eps, id_): broken_at.get(id_, np.inf) > eps for eps in protocol.eps for id_ in ids}


def test_the_worst_case_is_that_of_the_exhaustive_run(task, cascaded, exhaustive):
    classifier, x, y, ids = task
    chosen, rows, everything, label = protocol(), cascaded, exhaustive, dict(zip(ids, y.tolist()))
    with torch.no_grad():
        right = dict(zip(ids, (classifier(x).argmax(1) == y).tolist()))
    expected = {
        (eps, id_): right[id_]
        and all(everything[e, attack.name, id_] == label[id_] for e in chosen.eps if e <= eps for attack in chosen.attacks)
        for eps in chosen.eps
        for id_ in ids
    }
    assert worst(rows, ids, chosen) == expected
    counts = [sum(expected[eps, id_] for id_ in ids) for eps in chosen.eps]
    assert N > sum(right.values()) > counts[0] >= counts[1] > counts[2]  # a test in which something happens
    for row in rows:
        if row["attack"] != records.CLEAN:
            assert row["prediction"] == everything[row["eps"], row["attack"], row["image_id"]]


def test_the_exhaustive_rows_are_those_of_attacking_everything_and_have_the_worst_case_of_the_cascade(task, cascaded, exhaustive):
    chosen, rows = protocol(), cascaded
    full = run_cascade(*task, replace(chosen, independent=True))
    found = {(row["eps"], row["attack"], row["image_id"]): row["prediction"] for row in full if row["attack"] != records.CLEAN}
    assert found == exhaustive
    by_place = {(row["eps"], row["attack"], row["image_id"]): row for row in comparable(full)}
    assert all(by_place[row["eps"], row["attack"], row["image_id"]] == row for row in comparable(rows))
    assert len(rows) < len(full) == N * (1 + len(chosen.eps) * len(chosen.attacks))
    for eps in chosen.eps:
        assert outcome_of(full, chosen, None).flags(eps).tolist() == outcome_of(rows, chosen, None).flags(eps).tolist()


def test_confidence_is_the_probability_of_the_answer(task, cascaded):
    """On the image that the attack returned, at the classifier's own scale: of the clean one and of what the last attack left right."""
    classifier, x, y, ids = task
    attack, ball = ATTACKS[0], Ball("Linf", 0.5)
    images = attack(classifier, x, y, ids, ball, protocol().seed, 8).images
    with torch.no_grad():
        says = {(0.0, records.CLEAN): classifier(x).softmax(1), (ball.eps, attack.name): classifier(images).softmax(1)}
    seen = [row for row in cascaded if (row["eps"], row["attack"]) in says]
    assert len({row["attack"] for row in seen}) == 2
    for row in seen:
        probabilities = says[row["eps"], row["attack"]][ids.index(row["image_id"])]
        assert row["confidence"] == pytest.approx(float(probabilities[row["prediction"]]), abs=1e-5)
        assert row["confidence"] >= float(probabilities.max()) - 1e-5


def test_a_row_is_missing_exactly_where_the_image_was_broken_before(task, cascaded):
    chosen, rows = protocol(), cascaded
    stages = [(0.0, records.CLEAN), *((eps, attack.name) for eps in chosen.eps for attack in chosen.attacks)]
    by_id = {id_: {(row["eps"], row["attack"]): row["correct"] for row in rows if row["image_id"] == id_} for id_ in task[3]}
    assert sum(len(found) for found in by_id.values()) == len(rows)
    for found in by_id.values():
        verdicts = [found.get(stage) for stage in stages]
        met = verdicts.index(None) if None in verdicts else len(stages)
        assert all(verdict is None for verdict in verdicts[met:])
        assert all(verdicts[: met - 1])
        assert met == len(stages) or verdicts[met - 1] is False


def comparable(rows):
    """Return the rows without their time."""
    kept = ({name: value for name, value in row.items() if name != "seconds"} for row in rows)
    return sorted(kept, key=lambda row: (row["image_id"], row["eps"], row["attack"]))


def test_packing_and_order_change_no_row(task, cascaded):
    classifier, x, y, ids = task
    rows = comparable(cascaded)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    assert comparable(run_cascade(classifier, x[order], y[order], [ids[i] for i in order], protocol())) == rows
    for size in (13, 5):
        parts = [run_cascade(classifier, x[part], y[part], [ids[i] for i in part], protocol()) for part in torch.arange(N).split(size)]
        assert comparable([row for part in parts for row in part]) == rows


def test_the_metrics_read_the_cascade_as_the_worst_case(task, cascaded):
    chosen, rows = protocol(), cascaded
    shared = {"model": "m", "model_sha256": "s", "dataset": "toy", "protocol_hash": "p", "split": "test", "result_key": "r"}
    (outcomes,) = survival.worst_case(records.table(shared | row for row in rows), [a.name for a in ATTACKS], chosen.eps).values()
    expected = worst(rows, task[3], chosen)
    for eps in chosen.eps:
        assert outcomes["toy"].flags(eps).mean() == pytest.approx(np.mean([expected[eps, id_] for id_ in task[3]]))


@pytest.mark.parametrize(("off", "accuracy"), [(1, 0.0), (0, 1.0)])
def test_mmcoa_item_9_a_model_that_is_always_wrong_has_accuracy_0_on_a_part(task, off, accuracy):
    """Whatever the size of the set that the part is of: published code divides by another count than it adds up."""
    classifier, x, _, ids = task
    with torch.no_grad():
        y = (classifier(x).argmax(1) + off) % 4
    chosen = protocol(eps=(1e-6,))
    rows = run_cascade(classifier, x[:10], y[:10], ids[:10], chosen)
    shared = {"model": "m", "model_sha256": "s", "dataset": "toy", "protocol_hash": "p", "split": "test", "result_key": "r"}
    (outcomes,) = survival.worst_case(records.table(shared | row for row in rows), [a.name for a in ATTACKS], chosen.eps).values()
    for column in (metrics.CLEAN, *chosen.eps):
        found = metrics.macro(outcomes, column, {"toy": 4})
        assert (found.mean, found.n) == (accuracy, 10)


def test_what_an_attack_took_before_counts(task):
    @dataclass(frozen=True)
    class Kept(Noise):
        def __call__(self, *met):
            return replace(super().__call__(*met), spent=4000.0)

    rows = run_cascade(*task, protocol(attacks=(Kept(),), eps=(0.5,)))
    assert all(100 < row["seconds"] < 200 for row in rows if row["attack"] != "clean"), "4,000 s over the 35 images that are right"


def test_rows_say_what_happened(task, cascaded):
    (classifier, x, y, ids), rows = task, cascaded
    assert records.table(rows).num_rows == len(rows)
    assert [row["image_id"] for row in rows[:N]] == ids
    for row in rows[N:]:
        assert row["clean_prediction"] == row["label"]
        assert 0 <= row["linf"] <= row["eps"] / 255 + 1e-6
        assert (row["first_success"] is not None) == (not row["correct"])
        assert row["loss_best"] >= row["loss_start"] - 1e-6
        assert (row["norm"], row["seed"], row["restarts"]) == ("Linf", 3, 1)
    cross_entropy = F.cross_entropy(classifier(x), y, reduction="none")
    fgsm = {row["image_id"]: row["loss_start"] for row in rows if row["attack"] == "fgsm" and row["eps"] == 0.5}
    for i, id_ in enumerate(ids):
        if id_ in fgsm:
            assert fgsm[id_] == pytest.approx(cross_entropy[i].item(), rel=1e-4)


FEW = {"attacks": (Noise(2), PGD(2), APGD(3, loss="dlr"), APGDT(3)), "eps": (0.5, 4.0)}


def outcome_of(rows, chosen, classes):
    """Return what the metrics make of the rows, told what the protocol says about so many classes."""
    shared = {"model": "m", "model_sha256": "s", "dataset": "toy", "protocol_hash": "p", "split": "test", "result_key": "r"}
    skips = {"toy": [name for name, instead in reductions(chosen.attacks, classes).items() if instead is None]} if classes else {}
    names = [attack.name for attack in chosen.attacks]
    return survival.worst_case(records.table(shared | row for row in rows), names, chosen.eps, skips)["m"]["toy"]


def test_on_few_classes_an_attack_aims_at_fewer_under_the_name_the_protocol_calls_it_by(task):
    chosen, rows = protocol(**FEW), run_cascade(*task, protocol(**FEW))
    settings = {json.loads(row["attack_config"])["targets"] for row in rows if row["attack"] == "apgd-t-3"}
    assert {row["attack"] for row in rows} == {records.CLEAN, "noise-2", "pgd-2", "apgd-dlr-3", "apgd-t-3"}
    assert settings == {3}
    assert outcome_of(rows, chosen, 4).flags(4.0).sum() == sum(worst(rows, task[3], chosen)[4.0, id_] for id_ in task[3])


def test_what_two_classes_do_not_define_is_left_out_and_nothing_else_may_be_missing():
    chosen, classifier, x = protocol(**FEW | {"eps": (8.0, 24.0)}), Linear(2), middle(N)
    y, ids = classifier(x).argmax(1), ids_of(N)
    rows = run_cascade(classifier, x, y, ids, chosen)
    assert {row["attack"] for row in rows} == {records.CLEAN, "noise-2", "pgd-2"}
    found, expected = outcome_of(rows, chosen, 2), worst(rows, ids, chosen)
    for eps in chosen.eps:
        assert 0 < found.flags(eps).sum() == sum(expected[eps, id_] for id_ in ids) < N
        assert found.flags((eps, "apgd-t-3")).tolist() == found.flags((eps, "pgd-2")).tolist()
    with pytest.raises(UserError, match="no row and no earlier break at attack 'apgd-dlr-3'"):
        outcome_of(rows, chosen, None)
    with pytest.raises(UserError, match="no row and no earlier break at attack 'pgd-2'"):
        outcome_of([row for row in rows if (row["attack"], row["eps"]) != ("pgd-2", 24.0)], chosen, 2)


def test_an_attack_without_gradients_claims_nothing_about_them(task):
    rows = records.table(run_cascade(*task, protocol(attacks=(Noise(2), PGD(2)), eps=(1.0,)))).to_pylist()
    seen = {row["attack"]: row for row in rows if row["loss_best"] is not None}
    assert (seen["noise-2"]["zero_gradient"], seen["noise-2"]["nonfinite_gradient"]) == (None, None)
    assert 0 <= seen["pgd-2"]["zero_gradient"] < 1
    assert seen["noise-2"]["loss_best"] >= seen["noise-2"]["loss_start"]


def test_images_that_meet_no_attack_say_so(task):
    rows = run_cascade(*task, protocol(), attacks=())
    assert [row["image_id"] for row in rows] == task[3]
    assert {row["attack"] for row in rows} == {records.CLEAN_ONLY}
    assert {row["attack"] for row in run_cascade(*task, protocol(), attacks=ATTACKS[:1])} == {records.CLEAN, ATTACKS[0].name}


class Counting(nn.Module):
    """A classifier that is always right on class 0 and remembers the sizes of its batches."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return x.flatten(1)[:, :1] * 0 + torch.tensor([1.0, 0.0])


def test_every_batch_has_the_one_size():
    classifier, x = Counting(), torch.rand(11, 3, 2, 2)
    rows = run_cascade(classifier, x, torch.zeros(11, dtype=torch.long), [str(i) for i in range(11)], protocol(micro_batch=4))
    assert set(classifier.sizes) == {4}
    assert len(rows) == 11 * (1 + 3 * 3)
    assert predict(classifier, x, ids_of(11), 4).tolist() == [0] * 11


@dataclass(frozen=True)
class Cheat:
    """An attack that leaves its ball, its range, or the numbers."""

    kind: str
    name: str = "cheat"

    def __call__(self, classifier, images, labels, ids, ball, seed, micro_batch=None):
        far = {"ball": ball.radius * 1.01, "range": ball.radius, "nan": float("nan"), "honest": ball.radius * 0.99}[self.kind]
        return Example(images + far)


@pytest.mark.parametrize("kind", ["ball", "range", "nan"])
def test_an_attack_that_cheats_is_found_out(kind):
    x = torch.full((3, 3, 2, 2), 1.0 if kind == "range" else 0.5)
    task = (Counting(), x, torch.zeros(3, dtype=torch.long), ["a", "b", "c"])
    with pytest.raises(RuntimeError, match="cheat left its ball"):
        run_cascade(*task, protocol(attacks=(Cheat(kind),), eps=(4.0,)))
    rows = run_cascade(Counting(), x * 0 + 0.5, *task[2:], protocol(attacks=(Cheat("honest"),), eps=(4.0,)))
    assert rows[-1]["linf"] * 255 == pytest.approx(3.96, rel=1e-3)
    assert "loss_best" not in rows[-1]  # no trace, no claim
    assert 0.01 * Ball(eps=1.0).radius > cascade.TOLERANCE
