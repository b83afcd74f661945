"""Whether a long sweep grows: memory, open files and processes of a sweep of 40 smallest trials, sampled every second.

    python benchmarks/forty_trials.py [--trials 40]

Of the time from one trial's end to the next, the peak of every second's look counts: the driver, the raylet and the GCS each, all their
workers together, the files these hold open and how many actors there are. Trends are of the trials after the first fifth, which warm up:
growing is what Mann and Kendall's test finds rising (z > 1.96) and what grows by more than 2 % over those trials. Memory is resident, and
pages that processes share count in each.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import psutil

SPACE = '''"""Does a long sweep grow?"""
from ray import tune

RECIPE, METRIC, MODE = "smoke", "val/robust", "max"
SPACE = {{"threat.image.eps": tune.grid_search([round(0.1 * (i + 1), 1) for i in range({trials})])}}
'''
LEAST = 0.02  # of growth over the trials that count
Look = dict[str, float]


def kind(title: str) -> str:
    """Return what a process of a sweep is, by the beginning of its command line."""
    for what, mark in {"worker": "ray::", "raylet": "raylet/raylet", "GCS": "gcs_server"}.items():
        if mark in title:
            return what
    return "other"


def look(driver: psutil.Process) -> Look:
    """Return MB, open files and counts of a sweep's processes now."""
    found: Look = {"driver MB": 0.0, "raylet MB": 0.0, "GCS MB": 0.0, "workers MB": 0.0, "open files": 0.0, "actors": 0.0, "processes": 0.0}
    for process in [driver, *driver.children(recursive=True)]:
        with suppress(psutil.Error):
            title = " ".join(process.cmdline()[:1])
            what = "driver" if process == driver else kind(title)
            name = f"{what}s MB" if what == "worker" else f"{what} MB"
            if name in found:
                found[name] += process.memory_info().rss / 1e6
            found["open files"] += process.num_fds()
            found["processes"] += 1
            found["actors"] += what == "worker" and "ray::IDLE" not in title
    return found


def peak(looks: Iterable[Look]) -> Look:
    """Return the largest of each quantity."""
    found: Look = {}
    for each in looks:
        found = {name: max(value, found.get(name, value)) for name, value in each.items()}
    return found


def verdict(values: Sequence[float]) -> tuple[float, str]:
    """Return the growth from trial to trial (Theil and Sen's slope) and "growing" or "flat", of values after the warm-up."""
    n = len(values)
    slope = statistics.median((values[j] - values[i]) / (j - i) for i, j in combinations(range(n), 2))
    ties = (values.count(value) for value in set(values))
    variance = (n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18
    rising = sum((values[j] > values[i]) - (values[j] < values[i]) for i, j in combinations(range(n), 2))
    z = (rising - 1) / math.sqrt(variance) if rising > 0 else 0.0
    return slope, "growing" if z > 1.96 and slope * (n - 1) > LEAST * statistics.median(values) else "flat"


def table(ends: Sequence[Mapping[str, float]]) -> Iterable[str]:
    """Yield the table of some trials' peaks, with the trend of those after the first fifth."""
    counted = ends[len(ends) // 5 :]
    shown = [len(ends) // 5, len(ends) // 2, len(ends) - 1]
    yield f"| peak | {' | '.join(f'trial {i + 1}' for i in shown)} | a trial more | |\n| --- | ---: | ---: | ---: | ---: | --- |"
    for name in ends[0]:
        slope, said = verdict([end[name] for end in counted])
        yield f"| {name} | {' | '.join(f'{ends[i][name]:.0f}' for i in shown)} | {slope:+.2f} | {said} |"


def sweep(trials: int, folder: Path) -> list[Look]:
    """Run a sweep and return the peaks of the time up to the end of each trial; raises RuntimeError where one did not finish."""
    space = folder / "forty.py"
    space.write_text(SPACE.format(trials=trials))
    words = [sys.executable, "-m", "robustclip", "sweep", str(space), "--protocol", "smoke", "--out", str(folder / "out")]
    env = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    ended: list[float] = []
    with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:

        def listen() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                if line.rstrip().endswith(": finished"):
                    ended.append(time.monotonic())
                    print(f"\r{len(ended)} of {trials} trials", end="", file=sys.stderr, flush=True)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        driver, looks = psutil.Process(process.pid), list[tuple[float, Look]]()
        while process.poll() is None:
            with suppress(psutil.Error):
                looks.append((time.monotonic(), look(driver)))
            time.sleep(1.0)
        thread.join()
    print(file=sys.stderr)
    if process.returncode or len(ended) != trials:
        raise RuntimeError(f"the sweep ended with status {process.returncode} after {len(ended)} of {trials} trials")
    spans = zip([0.0, *ended[:-1]], ended, strict=True)
    found = [peak(each for at, each in looks if begin < at <= end) for begin, end in spans]
    return [each for each in found if each]  # two trials may end within a second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        ends = sweep(args.trials, Path(folder))
    print(f"{args.trials} trials in {time.monotonic() - started:.0f} s\n")
    print("\n".join(table(ends)))


if __name__ == "__main__":
    main()
