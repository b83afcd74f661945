"""Every published protocol end to end on miniatures, with a ViT-B/32 of random weights: prepared, attacked, checked, held against print.

    python benchmarks/every_preset.py [PRESET ...] [--model NAME] [--n 2] [--classes 10] [--root FOLDER]

The numbers mean nothing. What it shows is that a protocol's sets are prepared from what lies in a folder, found, attacked by all of its
attacks at every eps, averaged, checked, and put beside the published row of CLIP where there is one; the page of each says all of it.

What is cut: images (noise, one a class, `--n` of a set are scored), classes (`--classes` at most, so that nine targets are left; two sets
have names in their protocol and keep them), the number of images and classes that a protocol asks of a set, and its micro-batch (to `--n`:
a smaller one is filled up, 64 images would cost as much). As published are attacks, eps, prompts, geometry, splits, sizes and averages.
"""

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from robustclip.commands import evaluate, prepare
from robustclip.data.naming import wnids
from robustclip.data.sets import SETS
from robustclip.evaluation import expected
from robustclip.evaluation.presets import PRESETS
from robustclip.evaluation.protocols import PROTOCOLS
from robustclip.evaluation.rules import Protocol, SetRule

UNTRAINED = "open_clip:ViT-B-32/random[seed=0]"
COOP = "coop-test"
OF_IMAGENET = ("imagenet", "imagenet-r", "imagenet-sketch", "tinyimagenet")  # whose folders are wnids
SIDES = (40, 48)  # pixels of a set that has no native size


def classes_of(rule: SetRule, most: int) -> int:
    """Return how many classes the miniature of a set has: `most`, or what its protocol names."""
    return len(rule.class_names) or min(SETS[rule.name].classes, most)


def cut(protocol: Protocol, classes: int, n: int) -> Protocol:
    """Return a protocol that takes miniatures of its sets, `n` images of each."""
    rules = tuple(replace(rule, classes=classes_of(rule, classes), images=None) for rule in protocol.rules)
    return replace(protocol, rules=rules, n=n, micro_batch=n)


def lay_out(root: Path, protocol: Protocol, classes: int) -> None:
    """Write a miniature of every set of a protocol below `root`: class folders, or CoOp's JSON where the protocol scores its splits."""
    for rule in protocol.rules:
        folder, count = root / SETS[rule.name].folders[0], classes_of(rule, classes)
        keys = wnids()[:count] if rule.name in OF_IMAGENET else [f"kind_{i:02d}" for i in range(count)]
        by_json = rule.split == COOP and rule.name not in ("imagenet", "fgvcaircraft")  # CoOp gives none for these two
        split = "test" if rule.split == COOP else rule.split
        around = "" if by_json or split == SETS[rule.name].whole else f"{split}/"
        for place, key in enumerate(keys):
            file = folder / f"{around}{key}" / "0.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(noise(place, (rule.native, rule.native) if rule.native else SIDES))
        if by_json:
            rows = [[f"{key}/0.png", place, key] for place, key in enumerate(keys)]
            (folder / "split_zhou_Set.json").write_text(json.dumps({"train": [], "val": [], "test": rows}))


def noise(seed: int, sides: tuple[int, int]) -> bytes:
    """Return a PNG of random pixels."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*sides, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def row_of_clip(preset: str) -> str | None:
    """Return the published row of plain CLIP, with the tower B/32 where several are printed; None where nothing is."""
    found = sorted({expected.label(row) for row in expected.rows_of(preset) if row.model.startswith(expected.CLIP)})
    return next((label for label in found if "B/32" in label), found[0] if found else None)


@contextmanager
def meaning(name: str, protocol: Protocol) -> Iterator[None]:
    """Let the commands take a protocol for the one that is called `name`."""
    with patch.dict(PROTOCOLS, {name: protocol}):
        yield


def command(run: object, *words: str) -> None:
    """Run a command of the package in this process."""
    with patch.object(sys, "argv", ["robustclip", *words]):
        run()  # type: ignore[operator]


def end_to_end(name: str, model: str, n: int, classes: int, root: Path) -> None:
    """Prepare the sets of a preset, evaluate a model under it and print its page."""
    protocol, out = cut(PRESETS[name], classes, n), str(root / name / "out")
    lay_out(root / name / "sets", protocol, classes)
    command(prepare.run, "--suite", name, "--root", str(root / name / "sets"), "--out", out)
    row = row_of_clip(name)
    with meaning(name, protocol):
        command(evaluate.run, model, "--protocol", name, *(("--expect", row) if row else ()), "--out", out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"of {', '.join(PRESETS)} (default: all)")
    parser.add_argument("--model", default=UNTRAINED, help="(default: %(default)s)")
    parser.add_argument("--n", type=int, default=2, help="images of each set (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=10, help="of each set, at most (default: %(default)s)")
    parser.add_argument("--root", help="folder to keep (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in args.presets or PRESETS:
            print(f"\n\n=== {name} ===", flush=True)
            end_to_end(name, args.model, args.n, args.classes, Path(args.root or folder))


if __name__ == "__main__":
    main()
