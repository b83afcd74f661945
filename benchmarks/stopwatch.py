"""The demo against the clock: `robustclip sweep` in an empty folder, and the same command again, which finds all work done.

    python benchmarks/stopwatch.py [--runs 5] [--against CLONE]

Against the clone of another commit, with an environment of its own in `.venv`, the runs alternate; else the baseline is what is aimed at on
two quiet cores. A run takes four to five minutes.
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
    """Return the rows of both commands."""
    if against is None:
        ours = [demo(HERE) for _ in range(runs)]
        took = zip(*ours, strict=True)
        return [
            Pairs((aim,) * runs, each).row(claim, "what is aimed at", "ours", 1.0)
            for (claim, aim), each in zip(AIMS.items(), took, strict=True)
        ]
    theirs, ours = alternately(lambda: demo(against), lambda: demo(HERE), runs)
    sides = zip(zip(*theirs, strict=True), zip(*ours, strict=True), strict=True)
    return [Pairs(*each).row(claim, f"the commit of {against.name}", "this one") for claim, each in zip(AIMS, sides, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=PAIRS)
    parser.add_argument("--against", type=lambda text: Path(text).resolve())
    args = parser.parse_args()
    show("stopwatch", rows(args.runs, args.against))


if __name__ == "__main__":
    main()
