"""What MMCoA's study varies, inside and outside the distribution that trains: training-set size, which tower, eps and words.

    python pipelines/sweep.py few_shot --protocol study             # and towers, and strength; each again with --seed 1
    python benchmarks/study.py                                      # tables and figures, from those runs

In distribution: the fine-tuning set's own test split, other images of the 288 classes that train. Out of distribution: the suite's twelve
sets. Each clean, with images attacked within eps 2, with one word of every prompt rewritten (`clip_knn`), and with both (Co-Attack). Means
over the seeds, 95 % intervals over images. The figures are written to --to.

Measured 2026-11-30, two seeds, protocol hashes 289f37422cca4201 (in) and bb024ac5b2c468ac (out): the tables, two of the figures and what
they say are in docs/answers.md. In short: within the distribution MMCoA protects prompts, out of it little, and many images cost zero-shot
skill.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tables import columns_of, finished

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import main
from robustclip.data.world import FINE_TUNING
from robustclip.evaluation import protocols
from robustclip.evaluation.evaluator import evaluate
from robustclip.evaluation.protocols import Protocol
from robustclip.records import survival
from robustclip.records.contrasts import contrast
from robustclip.records.metrics import Estimate
from robustclip.records.survival import Outcomes
from robustclip.runtime import cluster
from robustclip.runtime.cli import say_on_terminal
from robustclip.sweeps import spaces, trends
from robustclip.sweeps.report import order
from robustclip.sweeps.spaces import Space
from robustclip.sweeps.trials import Trial

FOLDER = Path(__file__).resolve().parent.parent / "tune_spaces"
SPACES = ("few_shot", "towers", "strength")
MODES = ("image", "text", "joint")  # of the protocol's attacks


Runs = list[tuple[Trial, list[str]]]  # trials of a space, each with the checkpoints of its seeds


def runs_of(space: Space, seeds: Sequence[int], out: str) -> Runs:
    """Return the trials of a grid with their finished runs, as tables have them; raises UserError naming the command that is missing."""
    grids = {path: space.grid(path) for path in space.space}
    first, command = spaces.first_config(space), f"python pipelines/sweep.py {space.name} --protocol study"
    trials = [Trial(dict(zip(grids, values, strict=True)), "") for values in itertools.product(*grids.values())]
    found = []
    for trial in sorted(trials, key=lambda trial: order(space, trial)):
        config = spaces.trial_config(space, first, trial.sample)
        found.append((trial, [finished(replace(config, seed=seed), out, f"{command} --seed {seed}") for seed in seeds]))
    return found


def accuracies(names: Sequence[str], protocol: Protocol, out: str) -> dict[str, dict[str, Outcomes]]:
    """Return mode -> model -> what became of every image, each attack by itself; clean is part of each."""
    resolved, (eps,) = protocols.resolve(protocol, out), protocol.eps
    table = evaluate(names, resolved, out, actors=int(cluster.total()[0]), on_progress=lambda progress: print(progress, flush=True))
    attacks = dict(zip(MODES, protocol.attacks, strict=True))
    return {mode: survival.alone(table, [attack.name], eps, resolved.skips) for mode, attack in attacks.items()}


def estimates(found: Mapping[str, Mapping[str, Outcomes]], runs: Sequence[str], eps: float) -> dict[str, Estimate]:
    """Return mode -> accuracy over all seeds of a trial."""
    names = [models.display_name(run) for run in runs]
    columns = columns_of(MODES, eps)
    return {mode: contrast({"all": (1.0, [found[of][name] for name in names])}, column) for mode, (of, column) in columns.items()}


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="*", default=list(SPACES), help=f"of {', '.join(SPACES)} (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--images", type=int, default=300, help="of the fine-tuning set's test split (default: %(default)s)")
    parser.add_argument("--to", default=".", help="folder of the figures")
    parser.add_argument("--out", default="outputs")
    args = parser.parse_args()
    say_on_terminal()
    out, protocol = storage.resolve(args.out), protocols.named("study")
    loaded = [spaces.load_space(FOLDER / f"{name}.py") for name in args.spaces]
    trials = {space.name: runs_of(space, args.seeds, out) for space in loaded}
    cluster.connect()
    baseline = [spaces.first_config(loaded[0]).model]
    names = list(dict.fromkeys([*baseline, *(run for each in trials.values() for _, runs in each for run in runs)]))
    inside = replace(protocol, sets=(FINE_TUNING,), real=(), n=args.images)
    split = {name: accuracies(names, each, out) for name, each in (("in", inside), ("out of", protocol))}
    (eps,) = protocol.eps
    for space in loaded:
        print(f"\n{space.question.splitlines()[0]}")
        for name, found in split.items():
            rows = {"CLIP": estimates(found, baseline, eps)} | {
                trial.label: estimates(found, runs, eps) for trial, runs in trials[space.name]
            }
            print(f"\n| {name} distribution | {' | '.join(rows['CLIP'])} |\n|{'---|' * (len(MODES) + 2)}")
            for label, each in rows.items():
                print(f"| {label} | {' | '.join(f'{100 * e.mean:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]' for e in each.values())} |")
            assert space.axis is not None
            samples = {trial.label: trial.sample for trial, _ in trials[space.name]}
            of_mode = {mode: {label: rows[label][mode] for label in samples} for mode in rows["CLIP"]}
            lines = trends.lines(space.axis, samples, of_mode)
            figure = storage.join(args.to, f"study-{space.name}-{name.split()[0]}.png")
            storage.write_bytes(figure, trends.trend(space.axis, lines, rows["CLIP"], None, f"{name} distribution"))
            print(f"figure {figure}")


if __name__ == "__main__":
    main(run)
