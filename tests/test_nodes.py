"""A cluster of several nodes, one of which dies in the middle of the work while another one joins: weights and records are undisturbed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from one_process import cells_of, computed
from ray.cluster_utils import Cluster

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.values import override
from robustclip.evaluation import protocols
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


def at_work(cluster: Cluster, name: str) -> dict[int, Any]:
    """Return the processes of a name on the nodes that work: process id -> its node."""
    found = {}
    for node in cluster.worker_nodes:
        (raylet,) = node.all_processes["raylet"]
        found |= {
            each.pid: node for each in psutil.Process(raylet.process.pid).children(recursive=True) if name in " ".join(each.cmdline())
        }
    return found


def lose_one(cluster: Cluster, name: str, cpus: int = 2) -> None:
    """Kill a node on which something of this name is at work, with all its processes, and let another one join."""
    replace_node(cluster, next(iter(at_work(cluster, name).values())), cpus)


def replace_node(cluster: Cluster, lost: Any, cpus: int = 2) -> None:
    """Kill a node with all its processes and let another one join."""
    cluster.remove_node(lost, allow_graceful=False)
    cluster.add_node(num_cpus=cpus)


@contextmanager
def running(cluster: Cluster, words: list[str], **more: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command on the cluster."""
    here = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    env = here | {"RAY_ADDRESS": cluster.address} | more
    command = [sys.executable, "-m", "robustclip", *words]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process


def run(
    cluster: Cluster,
    words: list[str],
    moment: str,
    name: str,
    cpus: int = 2,
    first: Callable[[subprocess.Popen[str]], None] = lambda command: None,
    **more: str,
) -> str:
    """Run a command, at whose first line with `moment` a node is lost; `first` is done when it has begun. Return what it printed."""
    said, lost = [], False
    with running(cluster, words, **more) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        first(command)
        for line in command.stderr:
            said.append(line)
            if moment in line and not lost:
                lose_one(cluster, name, cpus)
                lost = True
        printed = command.stdout.read()
    assert command.returncode == 0, "".join(said)
    assert lost, "".join(said)
    return printed


RAY = [sys.executable, "-m", "ray.scripts.scripts"]
EVERY = 30  # steps from one checkpoint to the next, and of an epoch
WATCHED = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}


def warn(cluster: Cluster, name: str) -> Any:
    """Tell Ray, as a spot node does, that a node on which something is at work goes in ten seconds; return the node."""
    node = next(iter(at_work(cluster, name).values()))
    where = ["--address", cluster.address, "--node-id", node.node_id, "--deadline-remaining-seconds", "10"]
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*RAY, "drain-node", *where, *why], check=True, capture_output=True)
    return node


def steps_of(command: subprocess.Popen[str], said: list[str]) -> Iterator[int]:
    """Yield the step of every checkpoint that a training reports; keep what it says."""
    assert command.stderr is not None
    for line in command.stderr:
        said.append(line)
        if found := re.search(r"step (\d+) of", line):
            yield int(found[1])


def test_a_killed_training_goes_on_and_loses_two_nodes(cluster: Cluster, base: str, tmp_path: Path) -> None:
    """The first driver, of one worker, is killed. The second's two share every step; one goes with a node that was announced to go, after
    a checkpoint out of turn, and once both are back one goes unannounced."""
    many = {"data.rendered": 640, "data.n": 480, "optim.epochs": 12}
    changes = {"model": base, "data.name": "shapes", "checkpoint_every": EVERY, **many}
    words = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
    words = ["train", "smoke", *words, "--out", str(tmp_path / "out"), "--workers"]
    said: list[str] = []
    with running(cluster, [*words, "1"]) as command:
        for step in steps_of(command, said):
            if step == EVERY:
                command.kill()
    assert command.returncode == -signal.SIGKILL, "".join(said)
    warned, steps, first, lost = None, [], set[int](), 0
    with running(cluster, [*words, "2"], **WATCHED) as command:
        for step in steps_of(command, said):
            steps.append(step)
            workers = at_work(cluster, "RayTrainWorker")
            if warned is None:
                warned, first = warn(cluster, "RayTrainWorker"), {*workers}
            elif lost == 0 and step % EVERY:
                replace_node(cluster, warned)
                lost = 1
            elif lost == 1 and workers and not first & {*workers}:  # what was said before may be heard after
                lose_one(cluster, "RayTrainWorker")
                lost = 2
        assert command.stdout is not None
        printed = command.stdout.read()
    assert command.returncode == 0, "".join(said)
    assert steps[0] > EVERY
    assert lost == 2, steps
    local, _ = finetune_alone(models.load(base), override(RECIPES["smoke"].config, changes), str(tmp_path / "alone"))
    assert re.findall(r"weights sha256 (\w+)", printed) == [local.sha256]


SPACE = """'''Is a node missed?'''
from ray import tune

RECIPE, SPACE, METRIC, MODE = "smoke", {"threat.image.eps": tune.grid_search([2.0, 4.0])}, "val/robust", "max"
"""


def test_a_sweep_loses_a_node(cluster: Cluster, base: str, tmp_path: Path) -> None:
    """Two trials train side by side, at least one of them on the node."""
    (tmp_path / "two.py").write_text(SPACE)
    changes = {"model": base, "data.name": "shapes", "optim.epochs": 6, "checkpoint_every": 2}
    words = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
    out = str(tmp_path / "out")
    command = ["sweep", str(tmp_path / "two.py"), "--protocol", "smoke", "--concurrent", "2", *words, "--out", out]
    printed = run(cluster, command, "epoch 1 of 6", "RayTrainWorker")
    assert "(chosen by val/strong)" in printed
    made = {storage.read_json(str(path))["sha256"] for path in (tmp_path / "out" / "runs").glob("*/result.json")}
    configs = [override(RECIPES["smoke"].config, {**changes, "threat.image.eps": eps}) for eps in (2.0, 4.0)]
    assert made == {finetune_alone(models.load(base), config, str(tmp_path / "alone"))[0].sha256 for config in configs}


def test_an_evaluation_asks_for_nodes_uses_those_that_come_and_loses_one(base: str, tmp_path: Path) -> None:
    """The cluster has nothing but its head; what it may grow to is what is asked for, and the autoscaler sees it."""
    cluster, out = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}), str(tmp_path / "out")
    sets = ("shapes", "digits", "tools", "faces", "letters", "weather")
    words = ["evaluate", base, "--protocol", "smoke", "--sets", *sets, "--n", "64", "--out", out]

    def nodes_come(command: subprocess.Popen[str]) -> None:
        status = [*RAY, "status", "--address", cluster.address]
        while "'CPU': 1.0}: 2+ pending tasks/actors" not in subprocess.run(status, capture_output=True, text=True).stdout:
            assert command.poll() is None
            time.sleep(3.0)
        for _ in range(2):
            cluster.add_node(num_cpus=1)

    try:
        types = '{"cpu": {"max_workers": 2, "resources": {"CPU": 1}}}'
        assert "report" in run(cluster, words, "evaluated 1/", "ray::Worker", 1, nodes_come, ROBUSTCLIP_NODE_TYPES=types)
    finally:
        cluster.shutdown()
    resolved = protocols.resolve(protocols.named("smoke").changed(sets=sets, n=64), out)
    there = pa.concat_tables([records.read(f"{out}/records", cell.key) for cell in cells_of(resolved, base)])
    assert records.content_sha256(there) == records.content_sha256(computed(resolved, base))
