"""What Ray costs at equal work: trainings, evaluators and the stream of images against bare processes, in pairs that alternate.

    python benchmarks/ray_overhead.py [--model MODEL] [--batch 2] [--first 1] [--last 6] [--pairs 5]

Each side of a pair is a process of its own, so no Ray runs beside the bare one. On Ray: Train and the Data stream as `robustclip train`
uses them, the evaluator with two actors, the stream alone. Bare: `finetune_alone`, the same cells in two processes, torch's DataLoader
with as many processes. Both take the same steps on the same images: a ViT-B/32 with random weights, 10 classes, one step of PGD, JPEGs of
384 px of which 224 are seen, one thread for each training.

A training is timed from the end of its step `--first` to the end of its step `--last`, which is the time of more steps less that of
fewer, so that no start counts; two side by side wait for each other before. So few images are two blocks of the stream, which Ray has
decoded before the clock begins, so the time in which one process decodes them is added to Ray's. An evaluation is timed from its sixth
cell on, the stream from its first block on. Start-up, from the command to the end of the first step, and memory are rows of their own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import prepare
from ray_sides import SET, Size
from row import PAIRS, Pairs, Row, alternately, show

import robustclip
from robustclip.base.staging import staged
from robustclip.data.card import DatasetCard, save
from robustclip.data.shards import Row as Image
from robustclip.data.shards import write_split

CLASSES, DISTINCT, SIDE = 10, 64, 384
MODEL = "model"
FIRST_BLOCK, FIRST_STEP = 3.0, 8.0  # seconds that are aimed at
SPARE = 64  # images beyond those that are read


def make(out: str, size: Size) -> None:
    """Write the images that train and the model, and render those that are attacked."""
    images, count = [prepare.jpeg(number, SIDE) for number in range(DISTINCT)], size.images + SPARE
    rows_ = (Image(f"train/{i:06d}.jpg", i % CLASSES, images[i % DISTINCT]) for i in range(count))
    with staged(str(Path(out, "data", SET))) as stage:
        shards = write_split(stage, "train", rows_)
        names = tuple(f"class {i}" for i in range(CLASSES))
        save(DatasetCard(SET, names, ("a photo of a {}.",), {"train": count}, None, "none", "made", {"train": shards}), stage)
    size.evaluation(out)
    robustclip.save(robustclip.load(size.model), str(Path(out, MODEL)))  # a file of weights, as real ones are


def run(side: str, folder: str, size: Size) -> dict[str, float]:
    """Return what one side takes, in a folder of its own that shares the images."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        Path(out, "data").symlink_to(Path(folder, "data"))
        script = str(Path(__file__).resolve().parent / "ray_sides.py")
        words = [sys.executable, script, side, out, str(time.monotonic()), json.dumps(asdict(size) | {"model": str(Path(folder, MODEL))})]
        done = subprocess.run(words, capture_output=True, text=True, env=alone_on_cpus())
    if done.returncode:
        raise SystemExit(f"{side}: {(done.stderr.strip().splitlines() or ['it ended without a word'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def alone_on_cpus() -> dict[str, str]:
    """Return the environment of a side: a Ray of its own and no GPU, which the bare loop would not use."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"CUDA_VISIBLE_DEVICES": ""}


def rows(size: Size = Size(), pairs: int = PAIRS) -> list[Row]:  # noqa: B008 (a frozen value)
    """Return the rows of Ray against bare processes."""
    with tempfile.TemporaryDirectory() as folder:
        make(folder, size)
        bare, ray = alternately(lambda: run("bare", folder, size), lambda: run("ray", folder, size), pairs)

    def of(what: str, factor: float = 1.0) -> Pairs:
        return Pairs(*(tuple(factor * each[what] for each in side) for side in (bare, ray)))

    two = f"{size.processes} processes"
    steps = f"steps {size.first + 1} to {size.last} of {size.batch} images"
    ours = Pairs(tuple(each["one"] for each in ray), tuple(each["two"] for each in ray))

    def aimed(what: str, claim: str, aim: float, why: str = "") -> Row:
        return Pairs((aim,) * pairs, tuple(each[what] for each in ray)).row(claim, "what is aimed at", "on Ray", 1.0, why=why)

    looks = "a task that has ended waits for the executor's next look, and that shares the two cores"
    processes = "for each Ray Train starts six processes, of which two import torch and one the model too"

    return [
        of("one").row(f"a training, {steps}, decoding counted", "the bare loop", "Ray Train and Data", 0.95),
        of("evaluators").row("an evaluation, by the cell", two, f"{size.processes} Ray actors", 0.9),
        of("stream", 1000).row("images read and decoded, each", f"DataLoader, {two}", "the stream", 1.0, "ms", looks),
        aimed("first", "the first block of a stream", FIRST_BLOCK),
        aimed("again", f"{size.processes} more trainings in a Ray that runs: to the end of the first step", FIRST_STEP, processes),
        of("start").row("start-up: from the command to the end of the first step", "the bare loop", "on Ray"),
        of("memory").row("memory while training, all processes, what they do not share", "the bare loop", "on Ray", unit="MiB"),
        ours.row(f"time grows with trainings: {size.processes} side by side, {steps}", "one on Ray", "all of them on Ray"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Size()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    given = vars(parser.parse_args())
    show("ray", rows(pairs=given.pop("pairs"), size=Size(**given)))


if __name__ == "__main__":
    main()
