"""The passes that PGD-100 saves by leaving alone what repeats itself, at the settings that papers score with: a ratio in one run.

    python benchmarks/repeats.py [MODEL ...]

Sign steps soon go to and fro between two images (arXiv 2503.19347); the result is the same to the bit (tests/test_cycles.py). "declared"
are the passes that every step would take: 101 for an image that resists, up to its first success for one that does not.

Measured 2026-11-29 on tiny-vit8, 240 images: 6.47 times fewer passes at eps 1 in steps of eps (TeCoA's setting), 2.72 in steps of a
quarter, 1.98 at eps 2, 1.19 at eps 4, where few images resist, and 1.82 there in steps of eps.
"""

import argparse
import tempfile
from dataclasses import replace

import torch

from robustclip import names as models
from robustclip.attacks import PGD
from robustclip.base.threat import Ball
from robustclip.evaluation import computing, protocols

SETS, N, STEPS, SEED = ("shapes", "faces", "tools", "digits"), 60, 100, 0
SETTINGS = ((1.0, 1.0), (1.0, 0.25), (2.0, 0.25), (4.0, 0.25), (4.0, 1.0))  # eps in 1/255, the step as a share of it


def passes(name: str, eps: float, alpha: float, resolved: protocols.Resolved) -> tuple[int, int]:
    """Return the passes that PGD makes on a model over all sets, and those that its settings declare."""
    model, made, declared = models.load(name), 0, 0
    for cell in resolved.cells(name, ""):
        classifier, images, labels, ids = computing.on_device(model, resolved, cell.dataset, cell.rows)
        trace = PGD(STEPS, alpha)(classifier, images, labels, ids, Ball("Linf", eps), SEED, resolved.protocol.micro_batch).trace
        assert trace
        made += int(trace.forwards.sum())
        declared += int(torch.where(trace.first_success < 0, STEPS, trace.first_success).add(1).sum())
    return made, declared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tiny-vit8"], metavar="MODEL")
    args = parser.parse_args()
    print("| model | eps | step / eps | passes made | declared | ratio |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as out:
        resolved = protocols.resolve(replace(protocols.named("demo"), sets=SETS, n=N), out)
        for name in args.models:
            for eps, alpha in SETTINGS:
                made, declared = passes(name, eps, alpha, resolved)
                print(
                    f"| {models.display_name(name)} | {eps:g} | {alpha:g} | {made:,} | {declared:,} | {declared / made:.2f} |", flush=True
                )


if __name__ == "__main__":
    main()
