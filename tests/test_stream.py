"""The stream of a job: every rank gets its units of every step in order, whatever the number of workers and where it starts."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from robustclip.base.values import override
from robustclip.data.plan import read_unit
from robustclip.runtime import cluster
from robustclip.training import stream as streaming
from robustclip.training.job import prepare
from robustclip.training.recipes import RECIPES


def test_who_reads_imports_no_torch(tmp_path: Path, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task brings what it names: a function of the stream's own file would bring torch into every process that decodes images."""
    sources: list[Any] = []

    def taken(source: Any, **options: Any) -> Any:
        sources.append(source)
        return SimpleNamespace(context=SimpleNamespace(execution_options=SimpleNamespace()))

    monkeypatch.setattr(ray.data, "read_datasource", taken)
    config = override(RECIPES["smoke"].config, {"model": tiny_checkpoint, "data.name": "shapes", "data.n": 112})
    job = prepare(config, str(tmp_path))
    streaming.stream(job, cluster.Share(1, 0.5, 0.0), 0, range(job.plan.steps), None)
    task, *_ = sources[0].get_read_tasks(1)
    path = tmp_path / "task"
    path.write_bytes(ray.cloudpickle.dumps(task))
    read = f"import pickle, sys; from pathlib import Path; pickle.loads(Path({str(path)!r}).read_bytes()); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", read], check=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_its_executor_pauses(ray_session: None, tmp_path: Path, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a pause it looks at its tasks again and again while a block waits to be taken: a training had half of its CPU."""
    pauses, sleep = [], time.sleep
    monkeypatch.setattr(streaming, "PAUSE", 0.0123)
    monkeypatch.setattr(time, "sleep", lambda seconds: (pauses.append(seconds), sleep(seconds)))
    config = override(RECIPES["smoke"].config, {"model": tiny_checkpoint, "data.name": "shapes", "data.n": 112})
    assert len([*streaming.units_of(prepare(config, str(tmp_path)), cluster.Share(1, 0.5, 0.0))]) > 0
    assert pauses.count(0.0123) > 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_task_hands_out_each_of_its_blocks(
    ray_session: None, tmp_path: Path, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training waits for a block alone; Ray's own bound would gather all blocks of a task."""
    monkeypatch.setattr(streaming, "BLOCK_IMAGES", 32)
    monkeypatch.setattr(streaming, "TASK", 4)
    config = override(RECIPES["smoke"].config, {"model": tiny_checkpoint, "data.name": "shapes", "data.n": 112})
    job, share = prepare(config, str(tmp_path)), cluster.Share(1, 0.5, 0.0)
    found = streaming.stream(job, share, 0, range(job.plan.steps), ray.put(job.plan)).materialize()
    blocks = streaming.parts_of(range(1, job.plan.steps), streaming.steps_a_block(job, share))
    assert len(blocks) > 4
    assert found.num_blocks() == 1 + len(blocks)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("workers", "first"), [(1, 0), (2, 5)])
def test_ranks_get_their_units_in_order(
    ray_session: None, tmp_path: Path, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch, workers: int, first: int
) -> None:
    """Ray promises no order between releases: this test is what resume and equal workers rest on. Last pieces and blocks are short ones."""
    monkeypatch.setattr(streaming, "BLOCK_IMAGES", 16)
    monkeypatch.setattr(streaming, "TASK", 2)
    monkeypatch.setattr(streaming, "TASKS", 2)
    made, stream = [], streaming.stream
    monkeypatch.setattr(streaming, "stream", lambda *given: made.append(given[3]) or stream(*given))
    config = override(RECIPES["smoke"].config, {"model": tiny_checkpoint, "data.name": "shapes", "data.n": 112})
    job = prepare(config, str(tmp_path))
    for rank in range(workers):
        made.clear()
        units = streaming.units_of(job, cluster.Share(workers, 0.5, 0.0), rank, first)
        mine = [(step, unit) for step in range(first, job.plan.steps) for unit in range(rank, job.plan.units_per_step, workers)]
        expected = [(step, read_unit(job.plan, {"step": step, "unit": unit})["key"].tolist()) for step, unit in mine]
        assert [(int(unit["step"][0]), unit["key"].tolist()) for unit in units] == expected
        assert len(made) > 1
        assert [step for steps in made for step in steps] == [*range(first, job.plan.steps)]
    assert [*streaming.units_of(job, cluster.Share(workers, 0.5, 0.0), 0, job.plan.steps)] == []
