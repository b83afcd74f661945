"""The page of results: statuses by rule, pairs that alternate, one that fails among others, and one step by all three codes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import results
import step
import torch
from results import Benchmark, update
from row import Pairs, Row, alternately, line, not_measured

from robustclip.attacks.pgd import random_start

MODULE = """
import sys, time
from row import Row

def good():
    print("what a benchmark prints is no row")
    return [Row("a claim | of two\\nlines", "theirs: 2 s", "ours: 1 s", (2.0, 1.5, 2.5), 1.0), Row("a count", "4", "2", (2.0,))]

def bad():
    raise RuntimeError("first line\\nthe 7th product is wrong")

def endless():
    time.sleep(600)

def silent():
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("ratios", "aim", "why", "status"),
    [
        ((), 1.0, "", "not measured: no run yet"),
        ((), None, "no GPU here", "not measured: no GPU here"),
        ((1.2, 1.1, 1.3), 1.0, "", "met"),
        ((0.9, 1.1, 1.3), 1.1, "", "met, in 2 of 3 pairs"),
        ((0.9, 0.97, 1.3), 1.0, "", "not met: 0.97 of 1, 1 of 3 pairs reach it"),
        ((0.5,), 1.0, "memory is slow", "not met: 0.5 of 1, 0 of 1 pairs reach it; memory is slow"),
        ((3.0, 5.0), None, "", "measured, without an aim"),
    ],
)
def test_a_status_follows_from_the_median(ratios: tuple[float, ...], aim: float | None, why: str, status: str) -> None:
    assert Row("claim", "theirs", "ours", ratios, aim, why).status == status


def test_the_median_counts_and_the_spread_is_shown() -> None:
    row = Pairs((1.0, 4.0, 9.0), (1.0, 2.0, 3.0)).row("claim", "theirs", "ours", 1.0)
    assert (row.ratios, row.ratio, row.spread) == ((1.0, 2.0, 3.0), 2.0, "1 to 3, 3 pairs")
    assert (row.baseline, row.ours) == ("theirs: 4 s", "ours: 2 s")
    assert Row("claim", "4", "2", (2.0,)).spread == "a count"
    cells = line("name", not_measured("claim", "theirs", "ours", 0.5, "why"), "here", "today").strip("| ").split(" | ")
    assert cells == ["name", "claim", "theirs", "ours", "–", "≥ 0.5", "–", "here", "today", "not measured: why"]


def test_pairs_alternate_and_take_turns_at_being_first() -> None:
    order: list[str] = []

    def side(name: str) -> Callable[[], int]:
        return lambda: order.append(name) or len(order)  # type: ignore[func-returns-value]

    assert alternately(side("theirs"), side("ours"), 3) == ([1, 4, 5], [2, 3, 6])
    assert order == ["theirs", "ours", "ours", "theirs", "theirs", "ours"]


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Benchmark]:
    (tmp_path / "planted.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    slow = {"endless": 0.02}
    return {name: Benchmark(f"planted:{name}", f"about {name}", slow.get(name, 5)) for name in ("bad", "endless", "good", "silent")}


def test_a_benchmark_that_fails_is_a_row_and_the_others_run(tmp_path: Path, planted: dict[str, Benchmark]) -> None:
    page = tmp_path / "RESULTS.md"
    update(page, [*planted], planted)
    lines = [each.strip("| ").split(" | ") for each in page.read_text().splitlines() if each.startswith("| ") and "---" not in each]
    assert [cells[0] for cells in lines] == ["by", "bad", "endless", "good", "good", "silent"]
    assert page.read_text().startswith(results.HEADER)
    status = {(cells[0], cells[1]): cells[-1] for cells in lines}
    assert status["bad", "about bad"] == "not measured: the 7th product is wrong"
    assert status["endless", "about endless"] == "not measured: it took more than 0.02 minutes"
    assert status["silent", "about silent"] == "not measured: it ended with status 3"
    assert status["good", "a claim / of two lines"] == "met"
    assert status["good", "a count"] == "measured, without an aim"
    assert "GFLOP/s, torch " in lines[3][7]


def test_only_some_are_measured_again_and_the_others_stay(
    tmp_path: Path, planted: dict[str, Benchmark], monkeypatch: pytest.MonkeyPatch
) -> None:
    page, asked = tmp_path / "RESULTS.md", list[str]()

    def measured(name: str, benchmark: Benchmark) -> list[str]:
        asked.append(name)
        return [line(name, Row(f"claim {len(asked)}", "theirs", "ours", (2.0,), 1.0), "here", f"day {len(asked)}")]

    monkeypatch.setattr(results, "measured", measured)
    update(page, ["good"], planted)
    first = page.read_text()
    assert "| bad | about bad | – | – | – | – | – | – | – | not measured: no run yet |" in first
    update(page, ["bad"], planted)
    assert asked == ["good", "bad"]
    kept, new = (f"claim {i} | theirs | ours | 2 | ≥ 1 | a count | here | day {i} | met |" for i in (1, 2))
    assert f"| good | {kept}" in first
    assert f"| good | {kept}" in page.read_text()
    assert f"| bad | {new}" in page.read_text()
    page.write_text(f"{page.read_text()}| gone | a benchmark that is no more |\n")
    update(page, ["bad"], planted)
    assert "gone" not in page.read_text()


def test_every_benchmark_is_there() -> None:
    """What --measure imports: that of `ray`, whose rows need no Ray to be found, too."""
    for name, benchmark in results.BENCHMARKS.items():
        module, _, function = benchmark.rows.partition(":")
        source = Path(results.__file__).with_name(f"{module}.py").read_text()
        assert f"\ndef {function}(" in source, name


def test_there_is_a_reason_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {row.status for row in step.rows_on_gpu()} == {
        "not measured: no GPU here; there: python benchmarks/results.py --only gpu",
    }


def weights_after(code: Callable[..., step.Step], case: step.Case, found: list[torch.nn.Module], **start: step.Start) -> torch.Tensor:
    """Return the visual tower's weights after a step of a code; `found` is where the models that it loads are put."""
    code(case, **start)()
    return torch.cat([p.detach().flatten() for p in found[-1].visual.parameters()])  # type: ignore[operator, union-attr]


def test_the_codes_that_are_timed_take_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without the attack is another step. (Steps of eps soon forget the start, but equal starts end at equal corners.)"""
    case, found, load = step.Case(4, 6, "tiny-vit8"), list[torch.nn.Module](), step.models.load
    ids = [str(i) for i in range(case.images)]

    def loaded(name: str) -> object:
        model = load(name)
        found.append(model.clip)
        return model

    def as_ours(images: torch.Tensor) -> torch.Tensor:
        assert step.TECOA.threat.image is not None
        return random_start(step.TECOA.threat.image, images, ids, case.config.seed, "train", 0)

    monkeypatch.setattr(step.models, "load", loaded)
    ours = weights_after(step.ours, case, found)
    before = torch.cat([p.flatten() for p in load(case.model).clip.visual.parameters()])
    moved = (ours - before).norm()
    for code in (step.plain, step.published):
        theirs = weights_after(code, case, found, start=as_ours)
        other = weights_after(code, replace(case, attack_steps=0), found, start=as_ours)
        assert (theirs - ours).norm() < 0.01 * moved, code.__name__
        assert (other - ours).norm() > 0.05 * moved, code.__name__


def test_the_products_of_a_step_are_counted_and_done_again() -> None:
    a, b = torch.rand(3, 4), torch.rand(4, 5, requires_grad=True)
    products = step.products_of(lambda: [(a @ b).sum().backward() for _ in range(2)])
    assert sorted(products.counts.values()) == [2, 2]  # forward, and the gradient of b
    again = step.products_of(products.again)
    assert again.counts == products.counts


def test_what_is_extrapolated_lies_on_the_line() -> None:
    took = Pairs((2.0 + 0.03 * 100,), (0.5,))
    found = step.fitted({25: 2.0 + 0.03 * 25, 50: 2.0 + 0.03 * 50}, 100, took, 8, 256)
    assert found.baseline[0] == pytest.approx(32 * 2.0 + 0.03 * 1000)
    assert found.ours == (16.0,)
    assert step.extrapolated({25: 2.75, 50: 3.5}, 100, took, 8, 8).ratio == pytest.approx(32 / 0.5)
    assert "begins below zero" in step.extrapolated({25: 0.1, 50: 1.0}, 100, took, 8, 8).status
