"""Dividing a cluster: what fits gets its share, what would hang is refused."""

import pytest

from robustclip.base.errors import UserError
from robustclip.runtime import cluster


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def of(cpus: float, gpus: float = 0.0) -> None:
        monkeypatch.setattr(cluster, "total", lambda: (cpus, gpus))

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
