"""An evaluation killed twice, Ray and all, ends with the records of one undisturbed process and computes no finished cell again."""

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from one_process import cells_of

from robustclip import names as models
from robustclip.attacks.catalogue import named
from robustclip.base.threads import one_thread
from robustclip.data.world import SUITE
from robustclip.evaluation import protocols
from robustclip.evaluation.computing import record
from robustclip.models.checkpoints import save
from robustclip.models.model import Model
from robustclip.records import rows as records

ROOT = Path(__file__).resolve().parent.parent
ACTORS, KILLS, LONGEST = 2, 2, 1.0  # LONGEST: seconds from a run's first new cell to its kill
SETS = SUITE[:8]
ATTACKS, N = ("pgd-10", "apgd-ce-20"), 12
SETTINGS = ("--protocol", "smoke", "--sets", *SETS, "--n", str(N), "--attacks", *ATTACKS, "--actors", str(ACTORS))
PROGRESS = re.compile(rb"evaluated (\d+)/(\d+) cells \(")  # once one is done


@dataclass
class Run:
    """A running evaluation and what it said so far."""

    process: subprocess.Popen[bytes]
    said: bytes = b""

    def reported(self) -> list[tuple[int, int]]:
        """Return (computed now, missing when it started) of every line of progress."""
        return [(int(computed), int(missing)) for computed, missing in PROGRESS.findall(self.said)]

    def listen(self, timeout: float | None = None) -> bool:
        """Wait for output, `timeout` seconds at most; return whether there was any."""
        stream = self.process.stderr
        assert stream is not None
        if not select.select([stream], [], [], timeout)[0]:
            return False
        self.said += (heard := os.read(stream.fileno(), 1 << 16))
        assert heard, f"it ended before it was killed: {self.said.decode()}"
        return True

    def kill(self) -> None:
        """Send SIGKILL to the driver and to everything that Ray started for it, and wait until all are gone."""
        driver = psutil.Process(self.process.pid)
        family = [driver, *driver.children(recursive=True)]
        for each in family:
            with suppress(psutil.NoSuchProcess):  # Ray's processes also die with their parents
                each.kill()
        assert self.process.wait(timeout=60) == -signal.SIGKILL
        left = psutil.wait_procs(family, timeout=10)[1]  # zombies, where nobody reaps orphans
        assert all(not each.is_running() or each.status() == psutil.STATUS_ZOMBIE for each in left)


@contextmanager
def evaluating(checkpoints: list[str], out: Path) -> Iterator[Run]:
    """Start the command, the same every time."""
    env = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    words = [sys.executable, str(ROOT / "pipelines" / "evaluate.py"), "tiny-vit8", *checkpoints, *SETTINGS, "--out", str(out)]
    process = subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with process:
        yield Run(process)


def finish(checkpoints: list[str], out: Path) -> Run:
    """Let the command end and return what it said."""
    with evaluating(checkpoints, out) as run:
        _, run.said = run.process.communicate(timeout=600)
    assert run.process.returncode == 0, run.said.decode()
    return run


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    """Return cell key -> (inode, time of writing) of every record file."""
    found = ((path.stem, path.stat()) for path in (out / "records").glob("[!.]*.parquet"))
    return {key: (stat.st_ino, stat.st_mtime_ns) for key, stat in found}


def calm(names: list[str], out: Path) -> dict[str, list[dict[str, Any]]]:
    """Return cell key -> the records of an undisturbed process, which keeps them under `out`."""
    protocol = protocols.named("smoke").changed(sets=SETS, n=N, attacks=named(ATTACKS))
    resolved = protocols.resolve(protocol, str(out))
    cells = {cell.key: (name, cell) for name in names for cell in cells_of(resolved, name)}
    with one_thread():
        for name, cell in cells.values():
            record(models.load(name), cell, resolved, str(out), threads=1, commit=None)
    return {key: rows(out, key) for key in cells}


def rows(out: Path, key: str) -> list[dict[str, Any]]:
    """Return a cell's verified records without the only columns that two honest runs on one machine may differ in."""
    return records.read(str(out / "records"), key).drop_columns(["seconds", "commit"]).to_pylist()


@pytest.fixture
def checkpoints(make_model: Callable[..., Model], tmp_path: Path) -> list[str]:
    save(make_model(), str(tmp_path / "tiny"))
    return [str(tmp_path / "tiny")]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_kills_change_no_record_and_cost_only_the_cells_in_flight(checkpoints: list[str], tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    undisturbed = calm(["tiny-vit8", *checkpoints], tmp_path / "calm")
    cells = set(undisturbed)
    assert len(cells) == len(SETS) * (1 + len(checkpoints)) >= 16
    torn = killed / "records" / f".{min(cells)}.parquet.0.tmp"  # what a kill in the middle of a write leaves
    torn.parent.mkdir(parents=True)
    torn.write_bytes((tmp_path / "calm" / "records" / f"{min(cells)}.parquet").read_bytes()[:1000])

    moments, kept, computed = np.random.default_rng(0).uniform(0, LONGEST, KILLS), stamps(killed), 0
    for moment in moments:
        with evaluating(checkpoints, killed) as run:
            while not run.reported():
                run.listen()
            run.listen(moment)  # a second new cell may come first; more would leave nothing for the later kills
            run.kill()
        (reported, missing), found = run.reported()[-1], stamps(killed)
        assert missing == len(cells) - len(kept)
        assert kept.items() <= found.items()  # no finished cell was written again
        assert reported <= len(found) - len(kept) <= reported + ACTORS
        computed += reported + ACTORS  # and at most so many more were begun
        kept = found
    last = finish(checkpoints, killed).reported()[-1]
    assert last == (len(cells) - len(kept), len(cells) - len(kept))
    assert kept.items() <= stamps(killed).items()
    assert computed + last[0] <= len(cells) + KILLS * ACTORS
    assert set(stamps(killed)) == cells
    assert {key: rows(killed, key) for key in cells} == undisturbed
    assert torn.exists()
