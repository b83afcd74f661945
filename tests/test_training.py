"""Ray Train end to end on the smallest recipe: it learns, its result is kept, and what cannot work is refused before it starts."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.base.values import override
from robustclip.runtime import cluster
from robustclip.training import loop
from robustclip.training.config import Config
from robustclip.training.fit import fit
from robustclip.training.job import Job, prepare
from robustclip.training.recipes import RECIPES


@pytest.fixture
def smoke(tiny_checkpoint: str) -> Config:
    return override(RECIPES["smoke"].config, {"model": tiny_checkpoint, "data.name": "shapes"})


def test_a_run_writes_a_checkpoint_that_loads_and_is_not_run_again(trained: tuple[Job, dict[str, Any]]) -> None:
    job, result = trained
    saved = models.load(result["checkpoint"])
    assert saved.sha256 == result["sha256"] != models.load(job.config.model).sha256
    assert [row["step"] for row in result["history"]] == list(range(1, job.plan.steps + 1))
    assert {"loss", "lr", "val/clean", "val/robust"} <= set(result["metrics"])
    assert list(saved.card["class_names"]) == list(job.card.class_names)
    again = fit(job, cluster.Share(workers=0, cpus=0.0, gpus=0.0))  # impossible resources: nothing may start
    assert again == result


def test_a_key_depends_on_config_weights_and_data(tmp_path: Path, smoke: Config) -> None:
    base = prepare(smoke, str(tmp_path)).key
    assert prepare(smoke, str(tmp_path)).key == base
    for change in ({"optim.lr": 0.5}, {"data.render_seed": 7}, {"threat.image.eps": 1}, {"model": "tiny-vit8"}):
        assert prepare(override(smoke, change), str(tmp_path)).key != base


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"data.name": "shapse"}, "did you mean shapes"),
        ({"data.n": 10_000}, "10000"),
        ({"model": "tiny-vit9"}, "tiny-vit9"),
        ({"optim.micro_batch": 5}, "micro_batch"),
    ],
)
def test_what_cannot_work_is_refused_before_training(tmp_path: Path, smoke: Config, change: dict[str, Any], culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        prepare(override(smoke, change), str(tmp_path))


def test_workers_that_cannot_share_a_batch_are_refused(tmp_path: Path, smoke: Config) -> None:
    with pytest.raises(UserError, match="3 workers"):
        fit(prepare(smoke, str(tmp_path)), cluster.Share(workers=3, cpus=0.5, gpus=0.0))


def reports(monkeypatch: pytest.MonkeyPatch, every: int, steps: int, restored: int = 0) -> tuple[list[list[int]], dict[str, Any]]:
    """Return the steps that each report of a run of one epoch tells, restored at a step, and the run's result; its stream begins there."""
    import ray.train.torch

    reported: list[list[int]] = []
    streamed: list[tuple[int, int]] = []
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: "cpu")
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 1))
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: SimpleNamespace(path=f"ray/key/step_{restored:06d}") if restored else None)
    monkeypatch.setattr(ray.train, "report", lambda said, **kwargs: reported.append([row["step"] for row in said["curve"]]))
    learner = SimpleNamespace(step=restored)

    def walk(*given: Any) -> Iterator[dict[str, float]]:
        while learner.step < steps:
            learner.step += 1
            yield {"step": learner.step, "loss": 0.1}

    monkeypatch.setattr(loop, "build_learner", lambda *given: learner)
    monkeypatch.setattr(loop, "restore", lambda *given: [{"step": step, "loss": 0.1} for step in range(1, restored + 1)])
    monkeypatch.setattr(loop, "steps", walk)
    monkeypatch.setattr(loop, "units_of", lambda job, share, rank, first: streamed.append((rank, first)) or ())
    monkeypatch.setattr(loop, "finish", lambda job, learner, history: {"history": history})
    job = SimpleNamespace(config=SimpleNamespace(checkpoint_every=every), plan=SimpleNamespace(steps=steps, steps_per_epoch=steps))
    result = loop.train_loop({"job": job, "share": cluster.Share(2, 1.0, 0.0)})
    assert streamed == [(1, restored)]
    return reported, result


def test_a_resumed_run_reports_the_steps_it_was_not_there_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver that heard of them may have been killed before it told anyone."""
    reported, result = reports(monkeypatch, every=2, steps=9, restored=6)
    assert reported == [[1, 2, 3, 4, 5, 6, 7, 8], [9]]
    assert [row["step"] for row in result["history"]] == list(range(1, 10))


@pytest.mark.parametrize(
    ("watched", "told", "reported"),
    [
        ("1", {3: ["a"], 6: ["a", "b"]}, [[1, 2, 3], [4, 5], [6], [7, 8, 9]]),
        ("1", {}, [[1, 2, 3, 4, 5], [6, 7, 8, 9]]),
        ("0", {3: ["a"]}, None),
    ],
)
def test_a_node_that_is_to_be_taken_away_makes_a_checkpoint_at_once(
    monkeypatch: pytest.MonkeyPatch, watched: str, told: dict[int, list[str]], reported: list[list[int]] | None
) -> None:
    """One for each node, at the first step after its notice; asked after every step that makes none anyway, so on all ranks alike."""
    import ray.train

    asked: list[int] = []
    nodes: list[str] = []

    def info() -> SimpleNamespace | None:
        asked.append(step := [1, 2, 3, 4, 6, 7, 8][len(asked)])
        nodes[:] = told.get(step, nodes)
        return SimpleNamespace(preempted_node_ids=list(nodes)) if nodes else None

    monkeypatch.setenv(cluster.WATCHER, watched)
    monkeypatch.setattr(ray.train, "get_preemption_info", info)
    assert reports(monkeypatch, every=5, steps=9)[0] == (reported or [[1, 2, 3, 4, 5], [6, 7, 8, 9]])
    assert asked == ([1, 2, 3, 4, 6, 7, 8] if watched == "1" else [])


def test_the_first_unit_is_fetched_before_it_is_asked_for() -> None:
    asked = threading.Event()

    def units() -> Iterator[int]:
        asked.set()
        yield from range(3)
        raise ValueError("the data is damaged")

    begun = loop.begun(units())
    assert asked.wait(60)
    assert [next(begun) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="damaged"):
        next(begun)


def test_what_the_first_fetch_meets_is_raised_where_the_unit_is_asked_for() -> None:
    def units() -> Iterator[int]:
        raise ValueError("the data is damaged")
        yield

    begun = loop.begun(units())
    with pytest.raises(ValueError, match="damaged"):
        next(begun)
    assert list(loop.begun(())) == []
