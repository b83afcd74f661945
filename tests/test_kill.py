"""A training run whose worker is killed twice ends with the weights of an undisturbed one, bit for bit."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.values import override
from robustclip.runtime import cluster
from robustclip.training.alone import finetune_alone
from robustclip.training.config import Config
from robustclip.training.fit import fit
from robustclip.training.job import prepare
from robustclip.training.recipes import RECIPES

KILL_AFTER = (2, 4)  # steps: the first checkpoints at or after which a worker dies; none is the end of an epoch


@pytest.fixture
def config(tiny_checkpoint: str) -> Config:
    changes = {"model": tiny_checkpoint, "data.name": "shapes", "data.n": 96, "optim.epochs": 4, "checkpoint_every": 1}
    return override(RECIPES["smoke"].config, changes)


def train_workers() -> Iterator[psutil.Process]:
    """Yield the Ray Train worker processes of this process's own Ray: other tests may run one beside it."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may be gone by now
            if "RayTrainWorker" in " ".join(process.cmdline()):
                yield process


def kill_at(folder: str, steps: tuple[int, ...], killed: list[int]) -> None:
    """Send SIGKILL to a train worker when the checkpoint of each of `steps` is there."""
    for step in steps:
        while not any(name >= f"step_{step:06d}" for name in storage.list_folders(folder) if name.startswith("step_")):
            time.sleep(0.02)
        victims = list(train_workers())
        while not victims:  # being restarted
            time.sleep(0.02)
            victims = list(train_workers())
        os.kill(victims[0].pid, signal.SIGKILL)
        killed.append(victims[0].pid)
        victims[0].wait(timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_two_kills_change_no_bit(ray_session: None, tmp_path: Path, config: Config) -> None:
    calm, history = finetune_alone(models.load(config.model), config, str(tmp_path / "calm"))
    job = prepare(config, str(tmp_path / "killed"))
    killed: list[int] = []
    killer = threading.Thread(target=kill_at, args=(f"{job.out}/ray/{job.key}", KILL_AFTER, killed), daemon=True)
    killer.start()
    disturbed = fit(job, cluster.Share(workers=1, cpus=0.5, gpus=0.0))
    killer.join(timeout=5)
    assert len(set(killed)) == len(KILL_AFTER)
    assert disturbed["sha256"] == calm.sha256
    assert disturbed["history"] == history
