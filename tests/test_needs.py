"""What studies lack is trained, each thing once; one that fails keeps no other from being measured."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import claiming
import pytest

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.commands import reproduce
from robustclip.reproduction import ledger, page, running, worlds
from robustclip.reproduction.needs import Run, Sweep, distinct
from robustclip.reproduction.rules import UNDECIDED
from robustclip.runtime import cluster
from robustclip.sweeps.spaces import Space
from robustclip.training import fit as fitting
from robustclip.training.config import Config

WORLD = worlds.World("here", "x", "x", {}, {})


def run_of(role: str, key: str, seed: int = 0, folder: str = "/nowhere") -> Run:
    """Return a run whose job is a key, a seed and a folder, and nothing else."""
    job = SimpleNamespace(key=key, folder=folder, config=SimpleNamespace(seed=seed))
    return Run(role, job, f"{folder}/model", key, "")  # type: ignore[arg-type]


def sweep_of(study: str, *runs: Run, space: str = "", **fixed: Any) -> Sweep:
    """Return what is missing of a study, with a space or without."""
    asked = Space(space or f"reproduce-{study}", "?", "smoke", {}, "val/robust", "max", fixed=fixed)
    return Sweep(WORLD, worlds.Study(study, "smoke", space=space), asked, Config(), runs)


def test_sweeps_alike_are_one_that_knows_what_all_of_them_lack() -> None:
    first = sweep_of("a", run_of("x", "1"), space="epsilon", seed=0)
    same = sweep_of("b", run_of("y", "2"), run_of("x", "1"), space="epsilon", seed=0)
    other = sweep_of("b", run_of("y", "3", seed=1), space="epsilon", seed=1)
    found = distinct([first, same, other])
    assert [[*each.missing] for each in found] == [["1", "2"], ["3"]]
    assert str(found[0]) == "robustclip sweep epsilon --protocol smoke --seed 0"


def test_trainings_without_a_space_are_those_that_nothing_before_trains() -> None:
    sweep = sweep_of("a", run_of("x", "1"), space="epsilon", seed=0)
    apart = sweep_of("b", run_of("x", "1"), run_of("y", "2"), run_of("y", "3", seed=1))
    again = sweep_of("c", run_of("z", "3", seed=1))
    found = distinct([sweep, apart, again])
    assert [[*each.missing] for each in found] == [["1"], ["2", "3"]]
    assert str(found[1]) == "training of y of study b, seeds 0, 1"


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the place of a cluster of two CPUs."""
    monkeypatch.setattr(cluster, "connect", lambda: None)
    monkeypatch.setattr(cluster, "total", lambda: (2.0, 0.0))
    monkeypatch.setattr(cluster, "check_fits", lambda cpus, gpus: None)
    monkeypatch.setattr(cluster, "warn_of_local_results", lambda out: None)


def test_trainings_go_side_by_side_and_each_fails_alone(two_cpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[tuple[str, cluster.Share]] = []

    def fit(job: Any, share: cluster.Share) -> dict[str, Any]:
        shares.append((job.key, share))
        if job.key in ("2", "3"):
            raise UserError("no such prompt") if job.key == "2" else RuntimeError("a worker was killed")
        return {"checkpoint": f"/nowhere/{job.key}"}

    monkeypatch.setattr(running, "fit", fit)
    runs = [run_of("x", key) for key in "1234"]
    assert running.train([sweep_of("a", *runs)], "out") == {"2": "no such prompt", "3": "a worker was killed"}
    assert sorted(key for key, _ in shares) == ["1", "2", "3", "4"]
    assert {share for _, share in shares} == {cluster.Share(1, 0.5, 0.0)}  # two at once


def test_the_results_of_work_side_by_side_are_in_the_order_of_the_jobs(two_cpus: None) -> None:
    jobs = [run_of("x", key).job for key in "12345"]
    assert fitting.side_by_side(jobs, lambda job, share: job.key) == list("12345")


def test_a_sweep_that_cannot_be_says_why_and_mlflow_is_closed(two_cpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(running, "Tracker", lambda out: SimpleNamespace(close=lambda: closed.append(out)))

    def sweep(*given: Any) -> None:
        raise UserError("no data set 'cats'")

    monkeypatch.setattr(running, "sweep", sweep)
    asked = sweep_of("a", run_of("x", "1"), space="epsilon", seed=0)
    assert running.train([asked], "out") == {"1": "no data set 'cats'"}
    assert closed == ["out"]

    def crash(*given: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(running, "sweep", crash)
    with pytest.raises(ZeroDivisionError):  # a fault of the program is no claim's
        running.train([asked], "out")
    assert closed == ["out"] * 2


def test_a_trial_that_no_claim_asks_for_may_fail(two_cpus: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = SimpleNamespace(label="train eps -1", failure="eps must not be negative")
    outcome = SimpleNamespace(failures=[failed], trials=[failed])
    monkeypatch.setattr(running, "Tracker", lambda out: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(running, "publish", lambda *given: "")
    there, missing = run_of("x", "1", folder=str(tmp_path)), run_of("y", "2")

    def sweep(*given: Any) -> Any:
        storage.write_json(str(tmp_path / "result.json"), {})
        return outcome

    monkeypatch.setattr(running, "sweep", sweep)
    assert running.train([sweep_of("a", there, space="epsilon")], "out") == {}
    assert running.train([sweep_of("a", there, missing, space="epsilon")], "out") == {"2": "train eps -1: eps must not be negative"}


def test_a_study_whose_training_fails_is_named_and_the_others_are_measured(
    tmp_path: Path, tiny_checkpoint: str, two_cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Study small lacks its model, study tiny has all it asks for; meanwhile another command wrote into the same file."""
    folder, out = claiming.ledger(tmp_path, tiny_checkpoint), tmp_path / "out"
    laid, _ = running.lay(page.named(str(folder), "paper"), worlds.read(str(folder), "rendered"), [0], str(out))
    claiming.attack(laid["tiny"])
    other = ledger.Result(UNDECIDED, "why", "abc", "smoke 123", "2026-11-30", (), ())

    def fit(job: Any, share: Any) -> None:
        ledger.add(str(folder / "paper.toml"), "clip", {"rises": other})
        raise UserError("the disk is full")

    monkeypatch.setattr(running, "fit", fit)
    words = ["--paper", "paper", "--world", "rendered", "--seeds", "0", "--out", str(out), "--claims", str(folder)]
    monkeypatch.setattr(sys, "argv", ["robustclip reproduce", *words])
    with pytest.raises(UserError) as said:
        reproduce.run()
    assert "small: tecoa: not trained (the disk is full); the same command tries again" in str(said.value)
    assert "tiny:" not in str(said.value)
    results = ledger.read(str(folder / "paper.toml")).results
    assert results["clip"] == {"rises": other}
    assert {*results["rendered"]} == {"tiny"}
    assert results["rendered"]["tiny"].base == worlds.read(str(folder), "rendered").weights(laid["tiny"].study) != ""


@pytest.mark.slow
def test_what_a_study_lacks_is_trained_on_ray_train(tmp_path: Path, tiny_checkpoint: str, ray_session: None) -> None:
    """Two seeds of one recipe side by side; then nothing is missing, and no run of MLflow was made for it."""
    folder, out = claiming.ledger(tmp_path, tiny_checkpoint), str(tmp_path / "out")
    laid, _ = running.lay(page.named(str(folder), "paper"), worlds.read(str(folder), "rendered"), [0, 1], out)
    assert len(laid["small"].missing()) == 2
    assert running.train(distinct(each for study in laid.values() for each in study.sweeps()), out) == {}
    assert [study.missing() for study in laid.values()] == [(), ()]
    assert [study.sweeps() for study in laid.values()] == [[], []]
    assert not (tmp_path / "out" / "mlflow.db").exists()
