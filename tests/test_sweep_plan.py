"""What a sweep will take: what its trainings take and what the evaluation of its models takes, each of them and in all."""

from pathlib import Path
from typing import Any

import pytest

from robustclip.base import storage
from robustclip.base.forecast import Forecast, amount
from robustclip.base.values import override
from robustclip.evaluation import forecast as evaluation
from robustclip.evaluation import protocols
from robustclip.runtime import cluster
from robustclip.sweeps import forecast as sweeps
from robustclip.sweeps import tuning
from robustclip.sweeps.spaces import first_config, load_space
from robustclip.training import forecast as training
from robustclip.training.job import Job, prepare
from robustclip.training.recipes import RECIPES

SPACE = """'''How long?'''
from ray import tune
RECIPE, METRIC, MODE = "smoke", "val/robust", "max"
SPACE = {{{}}}
"""


@pytest.fixture
def job(tiny_checkpoint: str, tmp_path: Path) -> Job:
    """Return the smallest training: 64 images, twice, in 8 steps of two micro-batches of 8."""
    return prepare(override(RECIPES["smoke"].config, {"model": tiny_checkpoint, "data.name": "shapes"}), str(tmp_path / "out"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let every kind of training take a second a micro-batch on a cluster of two CPUs; return the keys of those that are measured."""
    for module in (cluster, tuning):
        monkeypatch.setattr(module, "total", lambda: (2.0, 0.0))
    monkeypatch.setattr(cluster, "check_fits", lambda cpus, gpus: None)
    found: list[str] = []
    takes = training.Measured(1.0, forwards=3, backwards=2, memory=2e9, weights=5e6)
    monkeypatch.setattr(training, "measure", lambda job, share: (found.append(job.key), takes)[-1])
    return found


def planned(job: Job, tmp_path: Path, sampled: str, samples: int = 1) -> Forecast:
    """Return the forecast of a sweep of one trial at a time, with a space of these samples, on two evaluators."""
    (tmp_path / "space.py").write_text(SPACE.format(sampled))
    space = load_space(tmp_path / "space.py")
    config = override(first_config(space), {"model": job.config.model, "data.name": "shapes"})
    return sweeps.forecast(space, config, protocols.named("smoke"), str(tmp_path / "out"), 1, 1, samples)


def test_a_sweep_is_its_trainings_and_its_models(job: Job, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that cannot be is no training; of each model two evaluators meet two cells of either set, and both read its prompts."""
    monkeypatch.setattr(protocols, "CELL_IMAGES", 8)
    monkeypatch.setattr(evaluation, "measure", lambda name, resolved: evaluation.Cost(0.0, 1.0, 0.5))
    found = planned(job, tmp_path, '"threat.image.eps": tune.grid_search([2.0, 4.0, -1.0])')
    sets = protocols.resolve(protocols.named("smoke"), str(tmp_path / "out")).sets.values()
    prompts = sum(len(each.card.class_names) * len(each.templates) for each in sets)
    assert len(measured) == 1
    assert found.seconds == 2 * 16.0 + 4 * (32 * (2 + 3) + 2 * prompts * 0.5) / 2
    assert found.at_least == 2 * 16.0 + 4 * (32 * 2 + 2 * prompts * 0.5) / 2
    read, records = training.read_bytes(job), 16 * evaluation.FILE + 4 * 32 * 3 * evaluation.ROW
    files = [file for each in sets for file in each.index.files]
    for said in (
        "trials      3\n",
        "trainings   2, 1 at a time: about 32 s\n",
        "a training  about 16 s\n",
        "images      64 a training, 256 shown in all; 128 to attack, under 4 models, of 2 sets\n",
        "steps       8 a training, 16 in all\n",
        "passes      3 forward and 2 backward of the image tower per image and step, 768 and 512 in all; at most 1,280 images through a "
        f"model, and {8 * prompts:,} prompts\n",
        "measured    1 s a micro-batch, 0 s a step besides, on 1 worker with 1 thread; 0 s an image forward, 1 s with its gradient",
        "memory      2 GB a worker; ",
        f"bytes       {amount(read)} read and 5 MB written as the checkpoint by a training, {amount(2 * read)} and 10 MB in all; "
        f"{amount(sum(storage.sizes(files)))} of images read, at most {amount(records)} of records written\n",
        "evaluation  4 models, 2 evaluators: about ",
        f"a model     32 images, at most 320 passes, {2 * prompts:,} prompts: about ",
        "a cell      at most 40 s\n",
    ):
        assert f"  {said}" in str(found)
    assert "GPU-hours" not in str(found)


def test_a_draw_is_a_training_and_a_value_that_is_given_is_none(job: Job, tmp_path: Path, measured: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(evaluation, "measure", lambda name, resolved: evaluation.Cost(0.0, 1.0))
    eps = '"threat.image.eps": tune.grid_search([2.0, 4.0])'
    assert planned(job, tmp_path, f'{eps}, "optim.lr": tune.loguniform(1e-5, 1e-3)', 3).facts["trainings"].startswith("6, 1 at a time")
    assert planned(job, tmp_path, f'{eps}, "optim.lr": 1e-4', 3).facts["trainings"].startswith("2, 1 at a time")


def test_trainings_beside_each_other_are_their_sum_over_the_places(job: Job, measured: list[str]) -> None:
    """One kind is measured once: of 8 steps of two micro-batches, and of twice as many epochs."""
    longer = prepare(override(job.config, {"optim.epochs": 4}), job.out)
    found = training.side_by_side([job, longer])
    assert len(measured) == 1
    assert found.seconds == (16.0 + 32.0) / 2
    assert "2, 2 at a time: about 24 s\n" in str(found)
    assert "a training  about 16 s to 32 s\n" in str(found)
    assert "steps       8 to 16 a training, 24 in all\n" in str(found)
    assert "memory      2 GB a worker, 4 GB of 2 at once\n" in str(found)
    assert training.together([job, longer], cluster.Share(2, 1.0, 0.5), 3).gpus == 3.0
    assert training.together([], cluster.Share(1, 1.0, 0.0), 1).seconds == 0.0


def test_kinds_beyond_those_that_are_measured_take_what_these_do(job: Job, measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The other kind has the same steps, each of four micro-batches instead of two."""
    monkeypatch.setattr(training, "KINDS", 1)
    jobs = [job, prepare(override(job.config, {"optim.micro_batch": 4}), job.out)]
    found = training.together(jobs, cluster.Share(1, 1.0, 0.0), 1)
    assert len(measured) == 1
    assert found.seconds == 16.0 + 32.0
    assert "about 48 s, 1 of 2 kinds measured\n" in str(found)
    assert "768 and 512 in all\n" in str(found)
    assert training.average([training.Measured(1.0, forwards=2), training.Measured(3.0)]) == training.Measured(2.0, forwards=1)
