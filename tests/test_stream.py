"""The stream of a job: every rank gets its units of every step in order, whatever the number of workers and where it starts."""

import time
from pathlib import Path

import pytest

from robustclip.base.values import override
from robustclip.data.plan import read_unit
from robustclip.runtime import cluster
from robustclip.training import stream as streaming
from robustclip.training.job import prepare
from robustclip.training.recipes import RECIPES


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_its_executor_pauses(ray_session: None, tmp_path: Path, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a pause it looks at its tasks again and again while a block waits to be taken: a training had half of its CPU."""
    pauses, sleep = [], time.sleep
    monkeypatch.setattr(streaming, "PAUSE", 0.0123)
    monkeypatch.setattr(time, "sleep", lambda seconds: (pauses.append(seconds), sleep(seconds)))
    config = override(RECIPES["smoke"].config, {"model": tiny_checkpoint, "data.name": "shapes", "data.n": 112})
    assert streaming.stream(prepare(config, str(tmp_path)), cluster.Share(1, 0.5, 0.0)).count() > 0
    assert pauses.count(0.0123) > 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("workers", "first"), [(1, 0), (2, 5)])
def test_ranks_get_their_units_in_order(
    ray_session: None, tmp_path: Path, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch, workers: int, first: int
) -> None:
    """Ray promises no order between releases: this test is what resume and equal workers rest on. The last block is a short one."""
    monkeypatch.setattr(streaming, "BLOCK_IMAGES", 32)
    config = override(RECIPES["smoke"].config, {"model": tiny_checkpoint, "data.name": "shapes", "data.n": 112})
    job = prepare(config, str(tmp_path))
    for rank in range(workers):
        units = streaming.units_of(streaming.stream(job, cluster.Share(workers, 0.5, 0.0), rank, first), job)
        mine = [(step, unit) for step in range(first, job.plan.steps) for unit in range(rank, job.plan.units_per_step, workers)]
        expected = [(step, read_unit(job.plan, {"step": step, "unit": unit})["key"].tolist()) for step, unit in mine]
        assert [(int(unit["step"][0]), unit["key"].tolist()) for unit in units] == expected
    done = streaming.stream(job, cluster.Share(workers, 0.5, 0.0), 0, job.plan.steps)
    assert [*streaming.units_of(done, job)] == []
