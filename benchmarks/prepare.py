"""How `robustclip prepare` scales: images a second with one process and with several, and the memory it takes for few and for many images.

    python benchmarks/prepare.py [--images 10000 60000] [--processes 1 2] [--side 384] [--to FOLDER]

The images are JPEGs of smooth noise that the benchmark makes itself, the same every time; of 384 x 384 pixels each has 37 kB. Every row is
a fresh process that prepares them as the command does, on no Ray with one process, else on a Ray of so many CPUs. Speeds are given as
multiples of that of one process, with and without the time in which Ray starts: they should be near the number of processes.
Memory is the largest resident memory of the command's own process, which knows all names, and of it and all that it started together,
looked at ten times a second (what they share counts in each). It ends with an error where the shards are not the same bit for bit. FOLDER
needs 80 kB an image.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil

CLASSES, MIB = 100, 1 << 20


def jpeg(number: int, side: int) -> bytes:
    """Return an image of side x side pixels: noise of 1/16 of its side, scaled up, with a little finer noise on it."""
    from PIL import Image

    g = np.random.default_rng(number)
    coarse = Image.fromarray(g.integers(0, 256, (side // 16, side // 16, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    fine = Image.fromarray(g.integers(0, 256, (side // 4, side // 4, 3), np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    stream = BytesIO()
    Image.blend(coarse, fine, 0.2).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def make(folder: Path, images: int, side: int) -> float:
    """Write images into class folders, those that are there left alone; return their mean size in bytes."""
    sizes = []
    for number in range(images):
        path = folder / "train" / f"class {number % CLASSES:03d}" / f"{number:07d}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number, side))
        sizes.append(path.stat().st_size)
    return sum(sizes) / len(sizes)


def work(source: str, out: str, processes: int) -> None:
    """Prepare a set and print what it took as JSON: what the processes that are measured do."""
    from robustclip.data.pieces import one_by_one
    from robustclip.data.preparation import prepare
    from robustclip.runtime import cluster, mapping

    started = time.monotonic()
    if processes > 1:
        cluster.start(num_cpus=processes, include_dashboard=False)
    ready = time.monotonic()
    card = prepare(out, "measured", [source], mapper=mapping.mapped if processes > 1 else one_by_one).card
    ended = time.monotonic()
    print(json.dumps({"seconds": ended - started, "start": ready - started, "shards": card.shards, "images": sum(card.splits.values())}))


def memory_of(process: psutil.Process) -> Iterator[int]:
    """Yield the resident bytes of a process and of everything that it started."""
    for each in (process, *process.children(recursive=True)):
        try:
            yield each.memory_info().rss
        except psutil.Error:
            continue


def measured(source: Path, out: Path, processes: int) -> dict:
    """Return what a fresh process that prepares a set took, with the largest memory seen."""
    shutil.rmtree(out, ignore_errors=True)
    environment = os.environ | {"RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--work", str(source), str(out), str(processes)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    own, together = 0, 0

    def look() -> None:
        nonlocal own, together
        process = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                seen = [*memory_of(process)]
            except psutil.Error:
                return
            own, together = max([own, *seen[:1]]), max(together, sum(seen))
            time.sleep(0.1)

    watcher = threading.Thread(target=look)
    watcher.start()
    said, _ = child.communicate()
    watcher.join()
    if child.returncode:
        raise SystemExit(f"preparing with {processes} processes ended with status {child.returncode}")
    return json.loads(said.splitlines()[-1]) | {"own": own, "together": together}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 60_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--to", help="folder for images and sets (default: a temporary one)")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work[0], args.work[1], int(args.work[2]))
        return
    with tempfile.TemporaryDirectory(dir=args.to) as folder:
        print(
            "| images | kB each | processes | images/s | of one process | without the start of Ray | own memory, MiB | all processes, MiB |"
        )
        print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for images in sorted(args.images):
            size = make(Path(folder) / "images", images, args.side)
            first: dict = {}
            for processes in args.processes:
                found = measured(Path(folder) / "images", Path(folder) / "out", processes)
                first = first or found
                if found["shards"] != first["shards"]:
                    raise SystemExit(f"{processes} processes made other shards than {args.processes[0]}")
                row = [f"{images:,}", f"{size / 1000:.0f}", processes, f"{found['images'] / found['seconds']:.0f}"]
                row += [f"{first['seconds'] / found['seconds']:.2f}", f"{first['seconds'] / (found['seconds'] - found['start']):.2f}"]
                print("|", " | ".join(map(str, [*row, found["own"] // MIB, found["together"] // MIB])), "|", flush=True)


if __name__ == "__main__":
    main()
