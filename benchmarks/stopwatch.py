"""The demo against the clock: `robustclip sweep` in an empty folder, and the same command again, which finds all work done.

    python benchmarks/stopwatch.py [--runs 5] [--against CLONE]

What it takes is set against what is aimed at on two quiet cores and, where there is one, against the clone of another commit, with an
environment of its own in `.venv`, whose runs alternate with these. A run takes four to five minutes.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from row import PAIRS, Pairs, Row, alternately, show

HERE = Path(__file__).resolve().parents[1]
AIMS = {"the demo, in an empty folder": 210.0, "the same command again": 15.0}  # seconds


def demo(clone: Path) -> tuple[float, ...]:
    """Return the seconds of the demo of a clone, and of the same command again."""
    python = sys.executable if clone == HERE else clone / ".venv" / "bin" / "python"
    with tempfile.TemporaryDirectory() as out:
        found = []
        for _ in AIMS:
            started = time.monotonic()
            subprocess.run([python, "-m", "robustclip", "sweep", "--out", out], cwd=clone, check=True, capture_output=True)
            found.append(time.monotonic() - started)
    print(f"{clone}: {', '.join(f'{each:.1f}' for each in found)} s", flush=True)
    return tuple(found)


def rows(runs: int, against: Path | None) -> list[Row]:
    """Return the rows of both commands: against what is aimed at, and against the clone where there is one."""
    theirs, ours = alternately(lambda: demo(against) if against else (), lambda: demo(HERE), runs)
    found = []
    for i, (claim, aim) in enumerate(AIMS.items()):
        took = tuple(each[i] for each in ours)
        found.append(Pairs((aim,) * runs, took).row(claim, "what is aimed at", "ours", 1.0))
        if against:
            found.append(Pairs(tuple(each[i] for each in theirs), took).row(claim, f"the commit of {against.name}", "ours"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=PAIRS)
    parser.add_argument("--against", type=lambda text: Path(text).resolve())
    args = parser.parse_args()
    show("stopwatch", rows(args.runs, args.against))


if __name__ == "__main__":
    main()
