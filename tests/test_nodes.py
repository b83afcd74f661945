"""A cluster of several nodes, one of which dies in the middle of the work while another one joins: weights and records are undisturbed."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from robustclip import names as models
from robustclip.base.values import override
from robustclip.evaluation import computing, protocols
from robustclip.models.checkpoints import save
from robustclip.models.model import Model
from robustclip.records import rows as records
from robustclip.training.alone import finetune_alone
from robustclip.training.recipes import RECIPES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a head that works on nothing and two nodes of two CPUs each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=2)
    yield made
    made.shutdown()


@pytest.fixture
def base(make_model: Callable[..., Model], tmp_path: Path) -> str:
    save(make_model(), str(tmp_path / "tiny"))
    return str(tmp_path / "tiny")


def processes(node: Any) -> str:
    """Return the command lines of all that runs on a node."""
    (raylet,) = node.all_processes["raylet"]
    return "\n".join(" ".join(each.cmdline()) for each in psutil.Process(raylet.process.pid).children(recursive=True))


def lose_one(cluster: Cluster, at_work: str) -> None:
    """Kill a node on which something is at work, with all its processes, and let another one join."""
    (lost, *_) = (node for node in cluster.worker_nodes if at_work in processes(node))
    cluster.remove_node(lost, allow_graceful=False)
    cluster.add_node(num_cpus=2)


def run(cluster: Cluster, words: list[str], moment: str, at_work: str) -> tuple[str, str]:
    """Run a command, at whose first line with `moment` a node is lost; return what it printed and what it said."""
    here = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    said, lost = [], False
    with subprocess.Popen(
        [sys.executable, "-m", "robustclip", *words],
        env=here | {"RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        for line in command.stderr:
            said.append(line)
            if moment in line and not lost:
                lose_one(cluster, at_work)
                lost = True
        printed = command.stdout.read()
    assert command.returncode == 0, "".join(said)
    assert lost, "".join(said)
    return printed, "".join(said)


def test_a_training_loses_a_node(cluster: Cluster, base: str, tmp_path: Path) -> None:
    """Two workers share every step; one of them was on the node."""
    changes = {"model": base, "data.name": "shapes", "optim.epochs": 6, "checkpoint_every": 2}
    words = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
    printed, _ = run(cluster, ["train", "smoke", "--workers", "2", *words, "--out", str(tmp_path / "out")], "step ", "RayTrainWorker")
    local, _ = finetune_alone(models.load(base), override(RECIPES["smoke"].config, changes), str(tmp_path / "alone"))
    assert re.findall(r"weights sha256 (\w+)", printed) == [local.sha256]


def test_an_evaluation_loses_a_node(cluster: Cluster, base: str, tmp_path: Path) -> None:
    sets = ("shapes", "digits", "tools", "faces", "letters", "weather")
    out = str(tmp_path / "out")
    run(cluster, ["evaluate", base, "--protocol", "smoke", "--sets", *sets, "--n", "64", "--out", out], "evaluated 1/", "ray::Worker")
    resolved = protocols.resolve(protocols.named("smoke").changed(sets=sets, n=64), out)
    model, here, there = models.load(base), [], []
    for cell in resolved.cells(models.display_name(base), models.identity(base)):
        here += [computing.provenance(cell, resolved) | {"threads": 1} | row for row in computing.compute(model, cell, resolved)]
        there += records.read(f"{out}/records", cell.key).to_pylist()
    assert records.content_sha256(records.table(there)) == records.content_sha256(records.table(here))
