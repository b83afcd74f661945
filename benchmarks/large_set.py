"""A set as large as ImageNet: what a job costs before its first step, and what reading by its index costs.

    python benchmarks/large_set.py [--images 1281167] [--to FOLDER]

1,000 classes, images of 8 px and about 250 bytes: only their number is that of ImageNet. FOLDER takes 0.6 GB; the set in it is made once.
The last rows are the command itself, `train smoke`, from its start to its first step, in a folder where nothing of it is finished.
"""

import argparse
import io
import pickle
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

from robustclip.base import storage
from robustclip.base.staging import staged
from robustclip.data.card import CARD, DatasetCard, load, save
from robustclip.data.index import scan
from robustclip.data.plan import Plan, read_unit, select
from robustclip.data.shards import Row, write_split

CLASSES, SIDE = 1000, 8
UNITS = 2000  # read one after another, so that footers, which a process reads once, count as they do in a run
STEP = re.compile(r"step 1 of ")
COMMAND = ("train", "smoke", "--data.name", "large", "--data.n", "null", "--data.per_class", "null", "--data.held_out", "1000")
Result = TypeVar("Result")


def make(folder: str, n: int) -> DatasetCard:
    """Write a set of n images."""
    random = np.random.default_rng(0)
    images = []
    for _ in range(CLASSES):
        stream = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(stream, "PNG")
        images.append(stream.getvalue())
    rows = (Row(f"train/n{i % CLASSES:08d}/n{i % CLASSES:08d}_{i}.JPEG", i % CLASSES, images[i % CLASSES]) for i in range(n))
    with staged(folder) as stage:
        shards = write_split(stage, "train", rows)
        names = tuple(f"class {i}" for i in range(CLASSES))
        save(DatasetCard("large", names, ("a photo of a {}.",), {"train": n}, SIDE, "none", "made", {"train": shards}), stage)
    return load(folder)


def timed(what: str, work: Callable[[], Result]) -> Result:
    """Do something and print its row."""
    started = time.monotonic()
    result = work()
    row(what, time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return result


def row(what: str, seconds: float, memory: float) -> None:
    print(f"| {what} | {seconds:.1f} s | {memory / 1e9:.2f} GB |", flush=True)


def amplification(plan: Plan) -> str:
    """Return what UNITS units of a plan make this process read, over the bytes of their own rows."""
    own = np.mean(
        [pq.read_metadata(path).row_group(0).total_byte_size / pq.read_metadata(path).row_group(0).num_rows for path in plan.files]
    )
    items = plan.items()
    before, started = _read(), time.monotonic()
    for _ in range(UNITS):
        read_unit(plan, next(items))
    bytes_, seconds = _read() - before, time.monotonic() - started
    return f"{bytes_ / (own * UNITS * plan.micro_batch):.2f} x its bytes, {seconds / UNITS * 1e3:.1f} ms"


def _read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def first_step(out: str, what: str) -> None:
    """Print the row of the command until its first step, with the memory of all its processes at that time, and stop it."""
    script = str(Path(__file__).resolve().parent.parent / "pipelines" / f"{COMMAND[0]}.py")
    words = [sys.executable, script, *COMMAND[1:], "--checkpoint_every", "1", "--out", out]
    started = time.monotonic()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        said = []
        for line in process.stderr:
            said.append(line)
            if STEP.search(line):
                break
        else:
            raise SystemExit("".join(said[-20:]))
        everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        row(what, time.monotonic() - started, sum(each.memory_full_info().uss for each in everyone))
        process.send_signal(signal.SIGINT)
        process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--to", default=None, help="folder to work in (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = args.to or temporary
        folder = storage.join(storage.resolve(out), "data", "large")
        print("| | time | memory |\n| --- | ---: | ---: |")
        if storage.exists(storage.join(folder, CARD)):
            card = load(folder)
        else:
            card = timed(f"{args.images:,} images written", lambda: make(folder, args.images))
        storage.delete(storage.join(folder, "train.index.arrow"))
        timed("their index, the first time", lambda: scan(folder, card, "train"))
        index = timed("the same again", lambda: scan(folder, card, "train"))
        rows, _ = timed("which rows train", lambda: select(index, held_out=1000))
        plan = Plan.of(index, rows, micro_batch=64, batch=256, epochs=10, seed=0)
        timed("the order of an epoch", lambda: plan.order(0))
        size = len(timed("the index as it travels", lambda: pickle.dumps(index, protocol=5)))
        first_step(out, "`train smoke` to its first step")
        with tempfile.TemporaryDirectory() as other:
            Path(other, "data").symlink_to(Path(out).resolve() / "data")
            first_step(other, "the same again")
        print(f"\nA unit of {plan.micro_batch}: {amplification(plan)}. The index is {size / 1e6:.0f} MB.")


if __name__ == "__main__":
    main()
