"""Ray Train end to end on the smallest recipe: it learns, its result is kept, and what cannot work is refused before it starts."""

from pathlib import Path
from typing import Any

import pytest

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.base.values import override
from robustclip.runtime import cluster
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
