"""Calibration: ECE, selective accuracy and AURC by hand and by brute force, over orders and sets, and what records can say of them."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from cascades import ATTACKS, EPS, PROTOCOL, synthetic

from robustclip.base.errors import UserError
from robustclip.records import calibration as measured
from robustclip.records import rows as records
from robustclip.records.calibration import BINS, COVERAGES, calibration, of_answers
from robustclip.records.rows import CLEAN
from robustclip.records.survival import worst_case
from robustclip.results import report
from robustclip.results.page import Page


def answers(n: int, seed: int = 0, over: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return answers that are right as often as they say, or less by `over`, half of them with confidences of two digits."""
    generator = np.random.default_rng(seed)
    confidence = generator.beta(3, 1, n)
    confidence[: n // 2] = confidence[: n // 2].round(2)
    return generator.random(n) < confidence - over, confidence


def by_hand(correct: np.ndarray, confidence: np.ndarray) -> float:
    """Return the ECE bin by bin, as the paper writes it: |accuracy - confidence| of the answers in ((m - 1) / M, m / M], by their share."""
    total = 0.0
    for m in range(1, BINS + 1):
        inside = [i for i, p in enumerate(confidence) if (m - 1) / BINS < p <= m / BINS or (m == 1 and p == 0)]
        if inside:
            total += len(inside) / len(correct) * abs(np.mean(correct[inside]) - np.mean(confidence[inside]))
    return float(total)


def test_ece_of_six_answers_by_hand() -> None:
    """Bins (14/15, 1] and (8/15, 9/15]: |0.95 - 3/4| of four, |0.55 - 1/2| of two."""
    found = of_answers(np.array([1, 1, 0, 1, 0, 1], dtype=bool), np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55]))
    assert found.ece.mean == pytest.approx(0.2 * 4 / 6 + 0.05 * 2 / 6)
    assert found.gap.mean == pytest.approx(4.9 / 6 - 4 / 6)


@pytest.mark.parametrize("n", [1, 7, 60, 999])
def test_ece_is_that_of_the_bins_one_by_one(n: int) -> None:
    for seed in range(5):
        correct, confidence = answers(n, seed)
        assert of_answers(correct, confidence, draws=2).ece.mean == pytest.approx(by_hand(correct, confidence))


def test_planted_bins_by_index_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bins of as many answers each, cut by their place and not by their value, are another measure."""
    monkeypatch.setattr(measured, "bins_of", lambda confidence: np.arange(len(confidence)) * BINS // len(confidence))
    with pytest.raises(AssertionError):
        test_ece_of_six_answers_by_hand()
    with pytest.raises(AssertionError):
        test_ece_is_that_of_the_bins_one_by_one(999)


def test_edges_belong_to_the_bin_below_and_the_ends_are_inside() -> None:
    edges = np.linspace(0, 1, BINS + 1)
    assert measured.bins_of(edges).tolist() == [0, *range(BINS)]
    assert measured.bins_of(np.nextafter(edges[:-1], 1)).tolist() == list(range(BINS))


def test_calibrated_answers_have_no_error_and_sure_ones_their_gap() -> None:
    found = of_answers(*answers(100_000), draws=50)
    assert found.ece.mean < 0.01
    assert found.ece.low == 0
    assert abs(found.gap.mean) < 0.005
    over = of_answers(*answers(100_000, over=0.1), draws=50)
    assert over.gap.low < 0.1 < over.gap.high
    assert over.ece.mean == pytest.approx(0.1, abs=0.01)
    always = of_answers(np.arange(1000) < 700, np.full(1000, 0.9))
    assert [always.ece.mean, always.gap.mean] == pytest.approx([0.2, 0.2])
    assert 0.15 < always.ece.low < 0.2 < always.ece.high < 0.25


@pytest.mark.parametrize("over", [0.0, 0.1])
def test_the_interval_holds_the_true_error_and_one_of_percentiles_would_not(over: float) -> None:
    """Of answers that are right as often as they say the true ECE is 0, though 200 of them show 0.07: a resample shows still more."""
    inside = beyond = 0
    for seed in range(40):
        found = of_answers(*answers(200, 100 + seed, over), draws=100).ece
        inside += found.low <= over <= found.high
        beyond += 2 * found.mean - found.high <= over  # where an interval of percentiles begins
    assert inside >= 34
    assert over or not beyond


def test_no_order_of_ties_counts() -> None:
    correct, confidence = answers(300)
    confidence = confidence.round(1)
    generator = np.random.default_rng(3)
    first = of_answers(correct, confidence, draws=2)
    for _ in range(5):
        order = generator.permutation(300)
        again = of_answers(correct[order], confidence[order], draws=2)
        for a, b in zip([first.ece, first.aurc, *first.selective], [again.ece, again.aurc, *again.selective]):
            assert a.mean == pytest.approx(b.mean)


def test_selective_accuracy_is_the_mean_over_all_orders_of_ties() -> None:
    """Of ten answers: the surest 5, 8 and 9 of every order that confidence allows."""
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.7, 0.7, 0.7, 0.4, 0.4, 0.4])
    correct = np.array([1, 0, 1, 0, 1, 0, 0, 1, 0, 0], dtype=bool)
    groups = [np.flatnonzero(confidence == level) for level in (0.9, 0.7, 0.4)]
    orders = [[*a, *b, *c] for a, b, c in itertools.product(*(itertools.permutations(group) for group in groups))]
    found = of_answers(correct, confidence)
    for coverage, share in zip(COVERAGES, found.selective, strict=True):
        k = round(10 * coverage)
        assert share.mean == pytest.approx(np.mean([correct[order[:k]].mean() for order in orders]))
        assert share.n == k


def test_planted_ties_in_the_order_they_came_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_tied", lambda confidence, values: values)
    with pytest.raises(AssertionError):
        test_no_order_of_ties_counts()
    with pytest.raises(AssertionError):
        test_selective_accuracy_is_the_mean_over_all_orders_of_ties()


def test_the_area_under_the_risk_coverage_curve() -> None:
    """By hand: after a right answer a wrong one, the risk (c - 1/2) / c from 1/2 on. As a sum over thresholds: the field's, to 1/n."""
    two = of_answers(np.array([False, True]), np.array([0.2, 0.9]))
    assert two.aurc.mean == pytest.approx(0.5 - 0.5 * math.log(2))
    assert of_answers(np.array([True, False]), np.array([0.5, 0.5])).aurc.mean == pytest.approx(0.5)
    assert of_answers(np.zeros(9, bool), np.linspace(0, 1, 9)).aurc.mean == pytest.approx(1)
    assert of_answers(np.ones(9, bool), np.linspace(0, 1, 9)).aurc.mean == 0
    correct, confidence = answers(2000)
    ordered = ~correct[np.argsort(-confidence)]
    summed = np.mean(ordered.cumsum() / np.arange(1, 2001))
    assert of_answers(correct, confidence, draws=2).aurc.mean == pytest.approx(summed, abs=1e-3)


def test_every_set_weighs_alike() -> None:
    """A set of twice as many images, each of them there twice, changes nothing; nor does the order of the sets."""
    (a, sure_a), (b, sure_b) = answers(50, 1), answers(80, 2)
    plain = of_answers(np.concatenate([a, b]), np.concatenate([sure_a, sure_b]), [50, 80], draws=2)
    twice = of_answers(np.concatenate([b, b, a]), np.concatenate([sure_b, sure_b, sure_a]), [160, 50], draws=2)
    assert plain.gap.mean == pytest.approx((sure_a.mean() - a.mean() + sure_b.mean() - b.mean()) / 2)
    for one, other in zip([plain.ece, plain.aurc, *plain.selective], [twice.ece, twice.aurc, *twice.selective]):
        assert one.mean == pytest.approx(other.mean)
    again = of_answers(np.concatenate([a, b]), np.concatenate([sure_a, sure_b]), [50, 80], draws=2)
    assert again == plain, "the same answers give the same intervals"


@pytest.mark.parametrize("confidence", [[], [1.1], [-0.1], [math.nan]])
def test_what_is_no_confidence_is_refused(confidence: list[float]) -> None:
    with pytest.raises(UserError, match="confidences from 0 to 1"):
        of_answers(np.ones(len(confidence), dtype=bool), np.array(confidence))


def recorded(table: pa.Table, seed: int = 0) -> pa.Table:
    """Return records with a random confidence in every row."""
    values = np.random.default_rng(seed).random(len(table))
    return table.set_column(table.schema.get_field_index("confidence"), "confidence", pa.array(values))


def test_the_answer_that_decided_is_kept() -> None:
    """Under every attack up to an eps: that of the row that broke an image, for good; of the others that of the last row."""
    table = recorded(synthetic({"plain": (0.8, 0.7)}))
    outcomes = worst_case(table, ATTACKS, EPS)["plain"]
    rows = table.to_pylist()
    stages = [(CLEAN, 0.0), *((attack, eps) for eps in EPS for attack in ATTACKS)]
    for name, seen in outcomes.items():
        for last, (attack, eps) in enumerate(stages):
            column = CLEAN if attack == CLEAN else (eps, attack)
            allowed, expected = stages[: last + 1], {}
            for row in rows:  # a cascade: an image that is broken has no later row
                if row["dataset"] == name and (row["attack"], row["eps"]) in allowed:
                    expected[row["image_id"]] = row["confidence"], row["correct"]
            confidence, correct = zip(*(expected[id_] for id_ in seen.ids), strict=True)
            assert seen.confidence(column).tolist() == list(confidence)
            assert seen.flags(column).tolist() == list(correct)
    assert np.array_equal(seen.confidence(4.0), seen.confidence((4.0, ATTACKS[-1])))


def test_rows_behind_a_break_change_nothing() -> None:
    """Independent attacks show broken images to every attack; what decided is the same."""
    table = recorded(synthetic({"plain": (0.8, 0.7)}))
    there = {(row["dataset"], row["image_id"], row["attack"], row["eps"]) for row in table.to_pylist()}
    more = [
        {**row, "attack": attack, "eps": eps, "confidence": 0.5}
        for row in table.filter(pc.equal(table["attack"], CLEAN)).to_pylist()
        for eps in EPS
        for attack in ATTACKS
        if (row["dataset"], row["image_id"], attack, eps) not in there
    ]
    whole = pa.concat_tables([table, records.table(more)])
    cascade, independent = (worst_case(each, ATTACKS, EPS)["plain"] for each in (table, whole))
    for column in (CLEAN, *EPS):
        assert calibration(cascade, column, draws=5) == calibration(independent, column, draws=5)


def test_a_report_shows_it_clean_and_after_every_attack() -> None:
    built = report.from_records(recorded(synthetic()), PROTOCOL)
    text = Page(built).markdown().partition("## Calibration")[2].partition("\n## ")[0]
    assert len([line for line in text.splitlines() if line.startswith("| tecoa ✗ |")]) == 1 + len(ATTACKS) * len(EPS)
    found = calibration(built.outcomes["tecoa"], (2.0, "pgd-10"))
    (line,) = (line for line in text.splitlines() if line.startswith("| tecoa ✗ | ε=2 after pgd-10 |"))
    numbers = [cell.split()[0] for cell in line.split("|")[3:-1]]
    wanted = [found.gap, found.ece, *found.selective, found.aurc]
    assert [float(number) for number in numbers] == [pytest.approx(100 * each.mean, abs=0.05) for each in wanted]
    assert f"{BINS} bins of equal width" in text


def test_independent_attacks_are_shown_one_by_one() -> None:
    first = recorded(synthetic({"plain": (1.0, 1.0)}))
    built = report.from_records(first, PROTOCOL | {"independent": True})
    assert list(built.calibrations["plain"]) == [CLEAN, *(f"ε={eps:g}, {attack}" for eps in (4.0, 1.0, 2.0) for attack in ATTACKS)]


def test_what_was_not_recorded_is_said() -> None:
    """Of records made before there were confidences, and of a set of which some rows lack them."""
    old = report.from_records(synthetic(), PROTOCOL)
    text = Page(old).markdown().partition("## Calibration")[2].partition("\n## ")[0]
    assert text.count("| all | not recorded | not recorded |") == 3
    assert "delete" in text
    table = recorded(synthetic({"plain": (0.9, 0.5)}))
    values = table["confidence"].to_pylist()
    last = max(i for i, row in enumerate(table.to_pylist()) if row["attack"] == ATTACKS[0] and row["eps"] == 1.0)
    values[last] = None
    gap = table.set_column(table.schema.get_field_index("confidence"), "confidence", pa.array(values, pa.float64()))
    outcomes = worst_case(gap, ATTACKS, EPS)["plain"]
    assert calibration(outcomes, CLEAN, draws=2) is not None
    assert calibration(outcomes, (1.0, ATTACKS[0]), draws=2) is None
