"""The numbers by hand, and for every refusal a planted fault that must trip it."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from robustclip.base.errors import UserError
from robustclip.records import metrics, survival
from robustclip.records import rows as records

ATTACKS, EPS = ("pgd-10", "apgd-ce-20"), (1.0, 2.0)
Row = dict[str, Any]


def rows_of(breaks: Sequence[Any], model: str = "m", dataset: str = "s", cascade: bool = True, ids: Sequence[str] = ()) -> list[Row]:
    """Return the rows of images of label 1; breaks[i] is "clean", None (never) or the set of (attack, eps) that break image i."""
    rows = []
    for i, broken in enumerate(breaks):
        image_id = ids[i] if ids else f"{i:04d}"

        def row(attack: str, eps: float, correct: bool, image_id: str = image_id) -> Row:
            return {
                "protocol": "p", "protocol_hash": "h" * 64, "model": model, "model_sha256": model, "dataset": dataset, "image_id": image_id,
                "attack": attack, "eps": eps, "label": 1, "prediction": 1 if correct else 0, "correct": correct,
            }  # fmt: skip

        rows.append(row("clean", 0.0, broken != "clean"))
        alive = broken != "clean"
        for eps in EPS:
            for attack in ATTACKS:
                if cascade and not alive:
                    continue
                correct = broken != "clean" and (broken is None or (attack, eps) not in broken)
                rows.append(row(attack, eps, correct))
                alive &= correct
    return rows


def outcomes(*rows: list[Row]) -> dict[str, dict[str, survival.Survival]]:
    return survival.worst_case(records.table(chain(*rows)), ATTACKS, EPS)


def flags(correct: int, n: int) -> dict[str, survival.Survival]:
    """Return the outcomes of a model on one set "s" with that many clean-correct images, none of them robust."""
    clean = np.arange(n) < correct
    return {"s": survival.Survival(ATTACKS, EPS, np.arange(n).astype(str), clean, np.zeros((n, 2, 2), dtype=bool))}


HALVES = [{("pgd-10", 1.0)}, {("apgd-ce-20", 1.0)}] * 5


@pytest.mark.parametrize("cascade", [True, False])
def test_two_attacks_that_break_disjoint_halves_leave_nothing(cascade: bool) -> None:
    survival = outcomes(rows_of(HALVES, cascade=cascade))["m"]["s"]
    assert [metrics.accuracy(survival, column).mean for column in ("clean", 1.0, 2.0)] == [1.0, 0.0, 0.0]
    assert [metrics.accuracy(survival, (1.0, attack)).correct for attack in ATTACKS] == [5, 0]


def test_independent_attacks_and_a_cascade_in_any_row_order_agree() -> None:
    generator = np.random.default_rng(0)
    cells = [(attack, eps) for eps in EPS for attack in ATTACKS]
    breaks = ["clean" if generator.random() < 0.2 else {cell for cell in cells if generator.random() < 0.2} for _ in range(200)]
    cascade, independent = outcomes(rows_of(breaks))["m"]["s"], rows_of(breaks, cascade=False)
    generator.shuffle(independent)
    other = outcomes(independent)["m"]["s"]
    assert (cascade.stages == other.stages).all()
    assert (cascade.clean == other.clean).all()
    assert cascade.stages.sum() > 0


def test_broken_at_a_small_eps_is_broken_at_every_larger_one() -> None:
    survival = outcomes(rows_of([{("pgd-10", 1.0)}, None], cascade=False))["m"]["s"]
    assert survival.flags(2.0).tolist() == [False, True]


def change(where: Callable[[Row], bool], **values: Any) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [{**row, **values} if where(row) else row for row in rows]


def is_cell(image: str, attack: str, eps: float) -> Callable[[Row], bool]:
    return lambda row: (row["image_id"], row["attack"], row["eps"]) == (image, attack, eps)


THIRD = is_cell("0002", "apgd-ce-20", 2.0)
FAULTS = {
    "missing row": (lambda rows: [row for row in rows if not THIRD(row)], "model 'm', set 's': image '0002' .* attack 'apgd-ce-20', eps 2"),
    "missing clean row": (lambda rows: [r for r in rows if not is_cell("0002", "clean", 0.0)(r)], "'0002' has no row .* 'clean', eps 0"),
    "contradiction": (
        lambda rows: rows + [{**row, "prediction": 0, "correct": False} for row in rows if THIRD(row)], "'0002' has rows with different p"
    ),
    "other label": (change(THIRD, label=2, prediction=2), "'0002' has rows with different labels"),
    "wrong flag": (change(THIRD, correct=False), "'0002' says `correct` is not"),
    "no prediction": (change(THIRD, prediction=None), "no prediction"),
    "other protocol": (change(THIRD, protocol_hash="other"), "different protocols"),
    "other weights": (change(THIRD, model_sha256="other"), "different weights"),
    "unknown attack": (change(THIRD, attack="square"), "attack 'square'"),
    "unknown eps": (change(THIRD, eps=3.0), "eps 3"),
    "nothing": (lambda rows: [], "no records"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused(fault: str) -> None:
    plant, message = FAULTS[fault]
    healthy = rows_of([None] * 3)
    outcomes(healthy)
    with pytest.raises(UserError, match=message):
        outcomes(plant(healthy))


def test_the_same_row_twice_is_one_row() -> None:
    rows = rows_of([None, "clean"])
    assert metrics.accuracy(outcomes(rows, rows)["m"]["s"], "clean").n == 2


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(0, 1000, 0.0, 0.00383), (500, 1000, 0.4691, 0.5309), (0, 200, 0.0, 0.0188), (1000, 1000, 0.99617, 1.0)],
)
def test_wilson_intervals_are_the_published_ones(correct: int, n: int, low: float, high: float) -> None:
    found = metrics.accuracy(flags(correct, n)["s"], "clean")
    assert (found.correct, found.n, found.mean) == (correct, n, correct / n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_macro_mean_of_equal_sets_has_the_pooled_interval() -> None:
    two = {"a": flags(30, 100)["s"], "b": flags(70, 100)["s"]}
    found, pooled = metrics.macro(two, "clean", {"a": 2, "b": 10}), metrics.accuracy(flags(100, 200)["s"], "clean")
    assert (found.mean, found.low, found.high, found.n, found.effective_n) == (pooled.mean, pooled.low, pooled.high, 200, 200)
    assert found.above_chance == pytest.approx((0.3 - 0.5 + 0.7 - 0.1) / 2)
    assert metrics.macro(two, "clean", {"b": 10}, sets=["b"]).mean == 0.7


def test_macro_mean_does_not_weigh_sets_by_size_and_small_ones_widen_it() -> None:
    uneven = {"a": flags(10, 10)["s"], "b": flags(0, 990)["s"]}
    found = metrics.macro(uneven, "clean", {"a": 2, "b": 2})
    assert found.mean == 0.5
    assert found.n == 1000
    assert found.effective_n == pytest.approx(4 / (1 / 10 + 1 / 990))


@pytest.mark.parametrize("sets", [[], ["s", "elsewhere"]])
def test_a_mean_over_sets_without_records_is_refused(sets: list[str]) -> None:
    with pytest.raises(UserError, match="cannot average"):
        metrics.macro(flags(1, 2), "clean", {"s": 2}, sets=sets)


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(UserError, match=r"no column 3\.0"):
        metrics.accuracy(flags(1, 2)["s"], 3.0)


def test_paired_difference_by_hand_and_mirrored() -> None:
    a, b = flags(60, 100), flags(50, 100)
    found, mirrored = metrics.paired_difference(a, b, "clean"), metrics.paired_difference(b, a, "clean")
    # ten of a hundred images, all for a: the bootstrap draws Binomial(100, 0.1) of them
    assert found.point == pytest.approx(0.1)
    assert 0.04 <= found.low <= 0.05
    assert 0.15 <= found.high <= 0.17
    assert (mirrored.point, mirrored.low, mirrored.high) == (-found.point, -found.high, -found.low)
    assert (found.sign, mirrored.sign, found.discordant, found.n) == (1, -1, 10, 100)
    only = found.per_set["s"]
    assert (only.only_a, only.only_b, only.p) == (10, 0, pytest.approx(2 * 0.5**10))


def test_paired_difference_has_the_width_of_the_textbook_formula() -> None:
    generator = np.random.default_rng(1)
    a, b = ({"s": survival.Survival(ATTACKS, EPS, np.arange(4000), generator.random(4000) < 0.5, np.zeros((4000, 2, 2)))} for _ in range(2))
    found = metrics.paired_difference(a, b, "clean")
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.5 / 4000), rel=0.08)


def test_models_that_do_not_differ_or_hardly_differ_are_not_told_apart() -> None:
    same = metrics.paired_difference(flags(50, 100), flags(50, 100), "clean")
    assert (same.point, same.low, same.high, same.sign, same.per_set["s"].p) == (0, 0, 0, 0, 1)
    hardly = metrics.paired_difference(flags(55, 100), flags(50, 100), "clean")
    assert hardly.low > 0
    assert hardly.sign == 0
    assert hardly.per_set["s"].p > 0.05


def test_holm_looks_at_all_sets() -> None:
    a = {name: flags(60, 100)["s"] for name in "xyz"}
    b = {name: flags(50 if name == "x" else 60, 100)["s"] for name in "xyz"}
    x = metrics.paired_difference(a, b, "clean").per_set["x"]
    assert x.p_holm == pytest.approx(3 * x.p)


@pytest.mark.parametrize("p", [[0.2], [0.04, 0.01, 0.03, 0.005], [0.5, 0.5, 1.0], [0.01, 0.01, 0.9, 1e-12, 0.3]], ids=str)
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    assert metrics.holm(p) == multipletests(p, method="holm")[1].tolist()
    assert metrics.holm([]) == []


@pytest.mark.parametrize(
    "other",
    [rows_of([None] * 2, "n"), rows_of([None] * 3, "n", ids=["0000", "0001", "x"]), rows_of([None] * 3, "n", "t")],
    ids=["fewer images", "other images", "other set"],
)
def test_models_on_other_images_are_not_compared(other: list[Row]) -> None:
    found = outcomes(rows_of([None] * 3), other)
    with pytest.raises(UserError, match="no comparison"):
        metrics.paired_difference(found["m"], found["n"], "clean")


def test_pareto_set_is_ordered_by_clean_accuracy() -> None:
    assert metrics.pareto([(0.9, 0.1), (0.5, 0.5), (0.5, 0.4), (0.2, 0.6), (0.1, 0.6)]) == [3, 1, 0]
    assert metrics.pareto([(0.5, 0.5), (0.5, 0.5)]) == [0, 1]
    assert metrics.pareto([]) == []


def test_metrics_need_neither_torch_nor_ray_nor_mlflow() -> None:
    code = "import sys, robustclip.records.metrics; assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_spread_over_seeds_by_hand() -> None:
    found = metrics.spread([0.1, 0.2, 0.6])
    assert (found.mean, found.smallest, found.largest, found.n) == (pytest.approx(0.3), 0.1, 0.6, 3)
    assert found.deviation == pytest.approx(((0.04 + 0.01 + 0.09) / 2) ** 0.5)
    with pytest.raises(UserError, match="two runs that differ in their seed alone"):
        metrics.spread([0.1])


def test_an_attack_apart_breaks_nothing_and_alone_tells_what_it_does():
    """Three images, right under one attack; the attack that stands apart breaks the first of them."""
    shared = {"model": "m", "model_sha256": "s", "dataset": "d", "protocol_hash": "h", "label": 1}
    rows = [
        shared | {"image_id": str(i), "attack": attack, "eps": eps, "prediction": int(right), "correct": right}
        for i in range(3)
        for attack, eps, right in (("clean", 0.0, True), ("other", 2.0, i > 0), ("counted", 2.0, True))
    ]
    table = records.table(rows)
    whole, without = (survival.worst_case(table, ["other", "counted"], [2.0], None, apart)["m"]["d"] for apart in ((), ("other",)))
    assert (whole.flags(2.0).sum(), without.flags(2.0).sum()) == (2, 3)
    assert without.attacks == ("counted",)
    assert [survival.alone(table, [name], 2.0)["m"]["d"].flags(2.0).sum() for name in ("other", "counted")] == [2, 3]
