"""Processes share a GPU as its memory allows, and what it cannot hold is refused with the arithmetic."""

import sys
from pathlib import Path
from typing import Any

import pytest

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.commands import evaluate, sweep
from robustclip.evaluation import forecast, protocols
from robustclip.runtime import cli, cluster, gpus
from robustclip.runtime.gpus import CONTEXT, SPARE, Footprint
from robustclip.sweeps import forecast as sweeps
from robustclip.sweeps import tuning
from robustclip.sweeps.spaces import TEST_TIME, Space

GB = 1e9


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the place of a node of 8 CPUs and a GPU."""
    for module in (cluster, tuning):
        monkeypatch.setattr(module, "total", lambda: (8.0, 1.0))
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}])
    monkeypatch.setattr(cluster, "connect", lambda: None)


@pytest.mark.parametrize(
    ("taken", "there", "share"),
    [(0, 0, 1.0), (60, 80, 1.0), (31, 80, 0.5), (17, 80, 0.3333), (10, 80, 0.2), (3.2, 80, 0.0625), (1, 24, 0.1)],
)
def test_a_share_is_one_of_those_that_fit(taken: float, there: float, share: float) -> None:
    assert gpus.share(Footprint(taken * GB, there * GB)) == share


@pytest.mark.parametrize("taken", [0.1, 0.7, 2.3, 5.0, 9.9, 20.0, 50.0])
def test_all_of_them_fit_and_one_more_would_not(taken: float) -> None:
    found = Footprint(taken * GB, 80 * GB)
    n = gpus.places(1, gpus.share(found))
    each = SPARE * found.taken + CONTEXT
    assert n * each <= found.there < (n + 1) * each
    assert n * gpus.share(found) <= 1


def test_what_a_gpu_cannot_hold_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(UserError, match=r"needs 88.5 GB of a GPU that has 80 GB \(70 GB measured, times 1.25, and 1 GB for CUDA\)"):
        gpus.share(Footprint(70 * GB, 80 * GB))


def test_no_process_is_on_two_gpus() -> None:
    assert gpus.places(5, 0.4) == 10  # and not 12
    assert gpus.places(4, 0.3333) == 12
    assert gpus.places(3, 1.0) == 3


def test_the_fullest_counts() -> None:
    small, large = Footprint(10 * GB, 80 * GB), Footprint(5 * GB, 16 * GB)
    assert gpus.largest([small, large, Footprint()]) == large
    assert gpus.largest([]) == Footprint()


def test_trials_share_a_gpu_but_not_its_memory(machine: None) -> None:
    assert cluster.fitting_trials(9, 1) == 1
    assert cluster.fitting_trials(9, 1, 0.25) == 4
    assert cluster.fitting_trials(99, 1, 0.05) == 7  # of 8 CPUs one is the data's
    share = cluster.divide(4, 1, 0.25)
    assert share == cluster.Share(1, 1.0, 0.25)
    assert [tuning.evaluator_actors(share, concurrent) for concurrent in (1, 2, 4)] == [4, 2, 1]
    assert cluster.fitting_actors(None, 0.25) == (4, 0.25)
    with pytest.raises(UserError, match=r"5 trials of 1 workers need 1.25 GPUs"):
        cluster.divide(5, 1, 0.25)
    with pytest.raises(UserError, match="NCCL needs a GPU for each worker"):
        cluster.divide(1, 2, 0.25)
    assert cluster.divide(2, 1, 0.0).gpus == 0.0


def test_without_a_gpu_a_share_of_one_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "total", lambda: (8.0, 0.0))
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    assert cluster.divide(2, 2, 0.25) == cluster.Share(2, 1.0, 0.0)
    assert cluster.fitting_trials(9, 1, 0.25) == 8


def test_an_evaluator_is_measured_on_a_cell_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved, size = protocols.resolve(protocols.named("smoke"), str(tmp_path)), models.input_size("tiny-vit8")
    assert forecast.footprint(["tiny-vit8"], resolved) == Footprint()  # there is no GPU here
    shown: list[int] = []
    meeting = forecast.meeting
    monkeypatch.setattr(forecast, "meeting", lambda model, ids, which: (shown.append(len(which)), meeting(model, ids, which))[1])
    monkeypatch.setattr(forecast, "taken", lambda more: Footprint(more, 80 * GB))
    found = forecast._held("tiny-vit8", resolved)
    assert shown == [resolved.protocol.micro_batch] == [8]
    assert found.taken == forecast.COPIES * 16 * 3 * size * size * 4


def test_a_defended_model_is_not_taken_for_its_base(tmp_path: Path) -> None:
    space = Space("why", "Why?", "smoke", {TEST_TIME: {"grid_search": []}}, "val/robust", "max")
    assert sweeps.footprint(space, None, None, str(tmp_path)) == Footprint()  # type: ignore[arg-type]


def test_auto_is_asked_for_by_name() -> None:
    assert cli.gpu_share("auto") is None
    assert cli.gpu_share("0.5") == 0.5


@pytest.mark.parametrize(("asked", "share"), [("auto", 0.2), ("0.5", 0.5)])
def test_a_sweep_measures_where_it_is_asked_to(
    machine: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str, share: float
) -> None:
    planned: list[Any] = []
    monkeypatch.setattr(sweep, "footprint", lambda *given: Footprint(10 * GB, 80 * GB))
    monkeypatch.setattr(sweep, "forecast", lambda *given: planned.append(given[-1]))
    monkeypatch.setattr(sys, "argv", ["robustclip sweep", "epsilon", "--plan", "--gpus", asked, "--out", str(tmp_path)])
    sweep.run()
    assert planned == [share]


@pytest.mark.parametrize(("asked", "planned"), [("auto", (5, 0.2)), ("0.5", (2, 0.5))])
def test_an_evaluation_measures_where_it_is_asked_to(
    machine: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str, planned: tuple[int, float]
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        cluster, "measured", lambda work, *given: Footprint(10 * GB, 80 * GB) if len(given) == 2 else seen.append(given[-2:])
    )
    words = ["robustclip evaluate", "tiny-vit8", "--protocol", "smoke", "--plan", "--gpus", asked, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    evaluate.run()
    assert seen == [planned]
