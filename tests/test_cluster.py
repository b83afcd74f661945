"""Dividing a cluster: what fits gets its share, what would hang is refused."""

from pathlib import Path

import pytest

from robustclip.base.errors import UserError
from robustclip.runtime import cluster, growth


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def of(cpus: float, gpus: float = 0.0) -> None:
        monkeypatch.setattr(cluster, "total", lambda: (cpus, gpus))
        monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}}])

    return of


@pytest.mark.parametrize(("cpus", "concurrent", "workers", "share"), [(2, 1, 1, 1.0), (2, 2, 1, 0.5), (16, 4, 2, 1.0), (4, 4, 1, 0.75)])
def test_a_share_leaves_room_for_the_data(machine, cpus: float, concurrent: int, workers: int, share: float) -> None:
    machine(cpus)
    given = cluster.divide(concurrent, workers)
    assert given.cpus == share
    assert given.cpus * concurrent * workers <= cpus - 1


def test_what_cannot_fit_is_refused(machine) -> None:
    machine(2)
    with pytest.raises(UserError, match="do not fit on 2 CPUs"):
        cluster.divide(concurrent=8, workers=1)
    machine(16, gpus=2)
    with pytest.raises(UserError, match="3 trials of 1 workers need 3 GPUs"):
        cluster.divide(concurrent=3, workers=1)


@pytest.mark.parametrize(
    ("cpus", "gpus", "trials", "workers", "fitting"), [(2, 0, 4, 1, 2), (16, 0, 4, 1, 4), (1, 0, 4, 1, 1), (64, 8, 9, 2, 4)]
)
def test_more_trials_where_there_is_room(machine, cpus: float, gpus: float, trials: int, workers: int, fitting: int) -> None:
    machine(cpus, gpus)
    assert cluster.fitting_trials(trials, workers) == fitting


LAUNCHED = """
available_node_types:
  head: {resources: {CPU: 0}}
  cpu_worker: {max_workers: 4, resources: {CPU: 16}}
  gpu_worker: {max_workers: 4, resources: {CPU: 8, GPU: 1}}
head_node_type: head
"""
TYPES = '{"gpu": {"max_workers": 2, "resources": {"CPU": 8, "GPU": 4}}}'


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Join a cluster whose only node is a head that works on nothing; return where the launcher's file would be."""
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 0.0})
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"node:10.0.0.1": 1.0}}])
    monkeypatch.setattr(growth, "LAUNCHED", str(tmp_path / "launched.yaml"))
    return tmp_path / "launched.yaml"


def test_a_cluster_that_grows_is_asked_for_what_it_may_become(growing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    growing.write_text(LAUNCHED)
    assert cluster.total() == (96.0, 4.0)
    assert cluster.fitting_trials(trials=9, workers=1) == 4
    assert cluster.divide(concurrent=4, workers=1) == cluster.Share(1, 1.0, 1.0)
    assert cluster.fitting_actors(gpu_share=0.5) == (8, 0.5)
    monkeypatch.setenv(growth.TYPES, TYPES)
    assert cluster.total() == (16.0, 8.0)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 32.0, "GPU": 2.0})
    assert cluster.total() == (32.0, 8.0)
    monkeypatch.delenv("RAY_ADDRESS")  # Ray on this machine alone
    assert cluster.total() == (32.0, 2.0)


def test_what_no_node_can_hold_is_refused_with_the_numbers(growing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ask in (lambda: cluster.divide(1, 1), cluster.fitting_actors):
        with pytest.raises(UserError, match=r"which no node of this cluster has \(0 CPUs, 0 GPUs\): .*ROBUSTCLIP_NODE_TYPES"):
            ask()
    monkeypatch.setenv(growth.TYPES, '{"small": {"max_workers": 9, "resources": {"CPU": 0.5}}}')
    with pytest.raises(UserError, match=r"a worker takes 1 CPUs and 0 GPUs, .*\(0 CPUs, 0 GPUs; 0.5 CPUs, 0 GPUs\)"):
        cluster.fitting_actors()


@pytest.mark.parametrize("text", ["{", "[1]", "{gpu: {resources: {GPU: 1}}}", "{gpu: {max_workers: many}}", "gpu"])
def test_node_types_that_cannot_be_read_are_one_line(growing: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(growth.TYPES, text)
    with pytest.raises(UserError, match=r"ROBUSTCLIP_NODE_TYPES: cannot be read .* written as in cluster.yaml") as error:
        cluster.total()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["cluster.yaml", "clusters/gcp.yaml"])
def test_our_own_launcher_files_are_read(growing: Path, file: str) -> None:
    growing.write_text((Path(__file__).parents[1] / file).read_text())
    cpus, gpus = cluster.total()
    assert cpus > gpus > 0


def test_threads_follow_the_share() -> None:
    assert cluster.Share(1, 0.5, 0).threads == 1
    assert cluster.Share(1, 4.0, 0).threads == 4


@pytest.mark.parametrize(("late", "raised"), [(0, None), (2, None), (3, "timed out during startup")])
def test_a_ray_that_comes_up_late_is_started_again(monkeypatch: pytest.MonkeyPatch, late: int, raised: str | None) -> None:
    """Ray gives itself 30 s, which a machine with much to do may not keep."""
    starts = []

    def init(**options: object) -> None:
        starts.append(options)
        if len(starts) <= late:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    if raised:
        with pytest.raises(UserError, match=raised):
            cluster.start(num_cpus=2)
    else:
        cluster.start(num_cpus=2)
    assert len(starts) == min(late + 1, cluster.STARTS)
    assert starts[0]["address"] == "local"


def test_another_error_of_ray_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    def init(**options: object) -> None:
        starts.append(options)
        raise ValueError("no such option")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ValueError, match="no such option"):
        cluster.start(nmu_cpus=2)
    assert len(starts) == 1
