"""What the benchmarks of long runs call growing, lost or doubled (benchmarks/forty_trials.py, benchmarks/outage.py)."""

import random
from pathlib import Path
from typing import Any

import forty_trials
import outage
import pytest
from mlflow import MlflowClient

from robustclip.runtime import store

WRITERS, STEPS = 3, 5


def noise(n: int, growth: float, seed: int) -> list[float]:
    """Return what a process of 700 MB may show, each trial 10 MB up or down, and what it grows by a trial."""
    draw = random.Random(seed)
    return [700 + growth * i + draw.uniform(-10, 10) for i in range(n)]


def test_a_leak_is_found_and_noise_is_none() -> None:
    leaks = [forty_trials.verdict(noise(32, 2.0, seed)) for seed in range(20)]
    calm = [forty_trials.verdict(noise(32, 0.0, seed)) for seed in range(20)]
    assert all(said == "growing" and 1.5 < slope < 2.5 for slope, said in leaks)
    assert {said for _, said in calm} == {"flat"}
    assert forty_trials.verdict(noise(32, -2.0, 0))[1] == "flat"
    assert forty_trials.verdict([9.0] * 32) == (0.0, "flat")


def test_the_table_counts_after_the_warm_up() -> None:
    """Files grow only while the first fifth of the trials runs."""
    ends = [{"MB": 700.0 + 3 * i, "open files": float(min(i, 8) * 100)} for i in range(40)]
    memory, files = [line for line in forty_trials.table(ends) if line.startswith(("| MB", "| open"))]
    assert memory == "| MB | 724 | 760 | 817 | +3.00 | growing |"
    assert files.endswith("| +0.00 | flat |")


def test_a_peak_is_the_largest_look() -> None:
    assert forty_trials.peak([{"a": 1.0, "b": 5.0}, {"a": 3.0, "b": 2.0}]) == {"a": 3.0, "b": 5.0}
    assert forty_trials.peak([]) == {}


def written() -> list[dict[str, Any]]:
    """Return a store that has everything."""
    runs = [
        {
            "key": f"key{i}",
            "status": "FINISHED",
            "params": {"writer": str(i)},
            "points": [(step, outage.loss(i, step)) for step in range(1, STEPS + 1)],
            "text": f"writer {i}",
        }
        for i in range(WRITERS)
    ]
    return [*runs, {"key": "parent", "status": "RUNNING", "params": {}, "points": [], "text": ""}]


def test_a_store_that_has_all_has_no_fault() -> None:
    assert outage.faults(written(), WRITERS, STEPS) == []


def test_what_a_writer_logs_is_read_back_without_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's own writing and reading, on a database and without an outage."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    outage.write(0, STEPS, str(tmp_path))
    client = MlflowClient(store.tracking_uri(str(tmp_path)))
    found = outage.read(client, client.get_experiment_by_name(store.EXPERIMENT).experiment_id)
    assert outage.faults(found, 1, STEPS) == []
    assert "key0: point (6, 0.16666666666666666) is lost" in outage.faults(found, 1, STEPS + 1)
    assert "0 runs key1, not 1" in outage.faults(found, 2, STEPS)


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lambda runs: runs.pop(), "0 runs parent, not 1"),
        (lambda runs: runs.append(runs[0]), "2 runs key0, not 1"),
        (lambda runs: runs[1].update(key="key7"), "0 runs key1, not 1"),
        (lambda runs: runs[1]["points"].pop(2), "key1: point (3, 1.3333333333333333) is lost"),
        (lambda runs: runs[1]["points"].append(runs[1]["points"][0]), "key1: point (1, 2.0) is there twice or was never written"),
        (lambda runs: runs[2].update(params={}), "key2: parameters {}"),
        (lambda runs: runs[2].update(text=""), "key2: its artefact says ''"),
        (lambda runs: runs[2].update(status="RUNNING"), "key2: it is RUNNING"),
    ],
)
def test_what_is_lost_or_doubled_is_named(plant: Any, said: str) -> None:
    runs = written()
    plant(runs)
    assert said in outage.faults(runs, WRITERS, STEPS)
