"""Rewrites RESULTS.md beside it: every claim about speed and size, measured here and now, with its aim and whether it is met.

    python benchmarks/results.py                       # all of it: half an hour on two cores that do nothing else
    python benchmarks/results.py --only step text      # some rows again; the others stay as they are, with their dates

Each benchmark runs in a process of its own, one after the other, the page is written after each, and one that fails or takes too long
becomes a row that says so. What a row measures is said in the docstring of its benchmark, of which most can be run at other sizes.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from row import Row, line, machine, not_measured, table

PAGE = Path(__file__).resolve().parent / "RESULTS.md"
HEADER = """# Results

Written by `python benchmarks/results.py`, never by hand; `--only NAME`, of the first column, measures some rows again. A ratio above 1 is
better than the baseline: the median of pairs that ran alternately, beside it the lowest and the highest. The rate of a machine is that of
a product of 2,048 x 2,048 matrices in fp32, just before. A status follows from the median by rule. Weights are random, or tiny-vit8.
"""


@dataclass(frozen=True)
class Benchmark:
    """Where the rows of a name come from (MODULE:FUNCTION, which returns them), what they are about, and the minutes they may take."""

    rows: str
    about: str
    minutes: float


BENCHMARKS: dict[str, Benchmark] = {
    "step": Benchmark("step:rows", "a training step against published and plain code, and the matrix products' own time", 8),
    "gpu": Benchmark("step:rows_on_gpu", "a training step on a GPU", 8),
    "growth": Benchmark("growth:rows", "how time and memory of a step grow", 8),
    "ray": Benchmark("ray_overhead:rows", "training, evaluating and reading on Ray against bare processes", 20),
    "cascade": Benchmark("cascade:rows", "the cascade against attacking every image with everything", 6),
    "tapt": Benchmark("batched_tuning:rows", "prompts tuned for a batch against one image at a time", 5),
    "text": Benchmark("text_batches:rows", "a text attack in batches against one sentence at a time", 4),
    "data": Benchmark("growth:rows_of_data", "how an index and a plan grow with the images of a set", 4),
}


def measure(rows: str) -> None:
    """Print the rows of MODULE:FUNCTION as a line of JSON: what the process of a benchmark does."""
    module, _, function = rows.partition(":")
    found: Sequence[Row] = getattr(importlib.import_module(module), function)()
    print(json.dumps([asdict(row) for row in found]))


def measured(name: str, benchmark: Benchmark) -> list[str]:
    """Return the lines of a benchmark, run in a process of its own; one that says why there is no number where it fails."""
    words = [sys.executable, __file__, "--measure", benchmark.rows]
    where, date = machine(), time.strftime("%Y-%m-%d")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            said, wrong = process.communicate(timeout=60 * benchmark.minutes)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return failed(name, benchmark, date, f"it took more than {benchmark.minutes:g} minutes")
    if process.returncode:
        return failed(name, benchmark, date, (wrong.strip().splitlines() or [f"it ended with status {process.returncode}"])[-1])
    return [line(name, Row(**row | {"ratios": tuple(row["ratios"])}), where, date) for row in json.loads(said.splitlines()[-1])]


def failed(name: str, benchmark: Benchmark, date: str, why: str) -> list[str]:
    """Return the one line of a benchmark that gave no rows."""
    return [line(name, not_measured(benchmark.about, "–", "–", None, why), "–", date)]


def kept(page: Path) -> dict[str, list[str]]:
    """Return the lines of a page by the name of the benchmark they came from."""
    found: dict[str, list[str]] = {}
    for each in page.read_text().splitlines() if page.exists() else ():
        if each.startswith("| "):
            found.setdefault(each.split(" | ")[0].removeprefix("| "), []).append(each)
    return found


def update(page: Path, only: Sequence[str], benchmarks: Mapping[str, Benchmark] = BENCHMARKS) -> None:
    """Measure some benchmarks and write the page after each; of the others the lines stay, or say that there is no run yet."""
    before = kept(page)
    lines = {name: before.get(name) or failed(name, each, "–", "no run yet") for name, each in benchmarks.items()}
    write(page, lines)
    for name in [each for each in benchmarks if each in only]:
        started = time.monotonic()
        lines[name] = measured(name, benchmarks[name])
        write(page, lines)
        print(*lines[name], f"{name}: {time.monotonic() - started:.0f} s", sep="\n", flush=True)


def write(page: Path, lines: Mapping[str, list[str]]) -> None:
    """Write the page of such lines."""
    page.write_text(f"{HEADER}\n{table(each for some in lines.values() for each in some)}\n")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=BENCHMARKS, default=[*BENCHMARKS], help=", ".join(BENCHMARKS))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    args = parser().parse_args()
    if args.measure:
        measure(args.measure)
    else:
        update(PAGE, args.only)


if __name__ == "__main__":
    main()
