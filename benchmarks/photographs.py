"""The papers' comparison on photographs, in small: a CLIP of 32 px trained here, fine-tuned by every method, attacked on other classes.

    python benchmarks/photographs.py sets --data ../shared/data     # archives of Tiny-ImageNet at 32 px, CIFAR-10 and clothing
    python benchmarks/photographs.py clip                           # pipelines/pretrain.py photos, 90 minutes
    python benchmarks/photographs.py zero-shot rates tower prompt epsilon interpolation trainable train_size ladder prompts
    python benchmarks/photographs.py [--plan]                       # all tables, and what did not run; or what each piece will take

A piece is done by its own command, in an hour or less of two cores but for the CLIP's; stopped, the same command goes on. What it says is
kept under --out, where all else lies too. Pieces: `sets` (see photo_sets.py); `clip`; `zero-shot`, what it knows; `rates`, a rate for every
method chosen on held-out images of the fine-tuning classes, in short trainings; `tower` and `prompt`, the comparison on the whole visual
tower and on deep prompt tokens, two seeds; `epsilon`, `interpolation`, `trainable`, `train_size`, the sweeps of these names; `ladder`,
test-time defences by what attackers know; `prompts`, attacks on class prompts and on both, and against the number of classes.

Scored are classes of Tiny-ImageNet that the CLIP never met (tiny-unseen), those that it met and that did not fine-tune it (tiny-rest),
CIFAR-10 and clothing; apart from them the fine-tuning classes' own test images. APGD-CE-20 at eps 1 and 2, trained at 2.

Not measured yet.

What it is not: the CLIP has 1.2 million parameters in its tower and has seen 80,000 images of 160 classes, whose captions are some twenty
a class and none of an image; 32 px; JPEG copies. Nothing of Tiny-ImageNet and CIFAR-10 may be passed on, nor weights made from them.
"""

import argparse
import io
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import multimodal
import photo_sets
from photo_runs import METHODS, PROBE, PROBED, PROMPT, TOWER
from photo_sets import SCORED
from photo_study import INSIDE, PROTOCOL, SWEEPS, Study
from tables import cell, losses, trained, verdict
from test_time import VIEWS

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError, main
from robustclip.base.forecast import duration
from robustclip.data.captions import read_captions
from robustclip.evaluation import forecast as attacks
from robustclip.evaluation import protocols
from robustclip.evaluation.protocols import Protocol
from robustclip.evaluation.rules import SetRule
from robustclip.models.class_texts import Descriptions
from robustclip.names import written
from robustclip.records import metrics, survival
from robustclip.records.survival import Outcomes
from robustclip.runtime import cluster
from robustclip.runtime.cli import say_on_terminal
from robustclip.test_time import DBD, RTPT, TPT, TTC, ViewEnsemble
from robustclip.training import forecast as training
from robustclip.training.job import prepare

HERE = Path(__file__).resolve().parent
ROWS = [*((method, part) for part in (TOWER, PROMPT) for method in METHODS), *((PROBE, name) for name in PROBED)]
CONTRASTS = [("TeCoA", "Adv."), ("TeCoA", "CE"), ("TeCoA + FARE", "TeCoA"), ("FARE", "TeCoA"), ("PMG-AFT", "TeCoA"), ("MMCoA", "TeCoA")]
CROSSED = ("Adv.", "TeCoA")  # the paper's interaction: without class names a prompt beats fine-tuning by more than with them
PROMPTED = ("TeCoA", "FARE", "TeCoA + FARE", "MMCoA")
DEFENDED = (ViewEnsemble(**VIEWS), TPT(**VIEWS), RTPT(**VIEWS), TTC(), DBD())
COMMANDS = {"sets", "clip", *SWEEPS}  # pieces that need no Ray in this process
NOT_RUN = "did not run: python benchmarks/photographs.py {}"


# --- pieces, each of which returns what it has to say -----------------------------------------------------------------------------------


def sets(study: Study) -> str:
    """Prepare the sets."""
    return "\n".join(photo_sets.make_sets(study.data, study.out))


def clip(study: Study) -> str:
    """Train the CLIP."""
    return command(study.pretraining())


def zero_shot(study: Study) -> str:
    """Say what the CLIP knows, set by set, clean on all images and attacked on 300; unseen classes by their descriptions too."""
    said = Descriptions.said(read_captions(photo_sets.captions_file(study.out)))
    by_name = replace(PROTOCOL, sets=(*SCORED, INSIDE), n=None, attacked=study.n * 4)
    described = replace(by_name, sets=("tiny-unseen",), rules=(SetRule("tiny-unseen", templates=said),))
    lines = ["| set | texts | images | clean | clean of those attacked | eps 1 | eps 2 |", f"|{'---|' * 7}"]
    for texts, protocol in (("names", by_name), ("descriptions", described)):
        (found,) = study.outcomes([study.clip], protocol).values()
        for name, each in found.items():
            columns = (metrics.CLEAN, survival.CLEAN_ATTACKED, *protocol.eps)
            lines.append(f"| {name} | {texts} | {len(each.ids)} | {' | '.join(cell([{name: each}], c, {name: 2}) for c in columns)} |")
    return "\n".join(lines)


def rates(study: Study) -> str:
    """Choose every method's rate."""
    return "\n".join(["| method | rate |", "|---|---|", *(f"| {row} | {rate:g} |" for row, rate in study.runs.choose(ROWS).items())])


def compare(part: str, study: Study) -> str:
    """Train and attack every method on a part of the model, and return its table and contrasts."""
    rows = [(method, part) for method in METHODS]
    probes = [(PROBE, name) for name in PROBED] if part == TOWER else []
    others = [(method, TOWER) for method in CROSSED] if part == PROMPT else []
    configs = {row: study.runs.final(*row, study.seeds) for row in [*rows, *others, *probes]}
    results = iter(trained([config for each in configs.values() for config in each], study.out))
    folders = {row: [next(results)["checkpoint"] for _ in each] for row, each in configs.items()}
    names = [study.clip, *(folder for row in [*rows, *others] for folder in folders[row])]
    outside, inside = (replace(PROTOCOL, sets=each, n=study.n) for each in (SCORED, (INSIDE,)))
    found = [(study.outcomes(names, protocol), study.classes(protocol)) for protocol in (outside, inside)]
    called = {row: [models.display_name(folder) for folder in folders[row]] for row in [*rows, *others]}

    def cells(runs: Sequence[str]) -> str:
        return " | ".join(cells_of([each[run] for run in runs], classes) for each, classes in found)

    lines = [f"| {part} | rate | clean | eps 1 | eps 2 | fine-tuned classes: clean | eps 1 | eps 2 | training loss |", f"|{'---|' * 9}"]
    lines += [f"| CLIP | | {cells([models.display_name(study.clip)])} | |"]
    for row in rows:
        lines.append(f"| {row[0]} | {study.runs.chosen(*row):g} | {cells(called[row])} | {losses(folders[row][0])} |")
    for claim, signs in claims(part).items():
        terms = {str(row): (sign, [found[0][0][run] for run in called[row]]) for row, sign in signs.items()}
        said = "; ".join(f"{column} {verdict(terms, column)}" for column in (metrics.CLEAN, *PROTOCOL.eps))
        lines.append(f"\n{claim}, points, paired 95 % interval over images: {said}")
    for row in probes:
        each = study.outcomes([study.clip, *folders[row]], replace(outside, sets=(row[1],)))
        plain = cells_of([each.pop(models.display_name(study.clip))], {row[1]: 10})
        lines.append(f"\n{row[0]} of {row[1]}, clean | eps 1 | eps 2: {cells_of([*each.values()], {row[1]: 10})}; CLIP {plain}")
    return "\n".join(lines)


def claims(part: str) -> dict[str, dict[tuple[str, str], float]]:
    """Return what is set against what: title -> method and part -> its sign."""
    found = {f"{a} - {b}": {(a, part): 1.0, (b, part): -1.0} for a, b in CONTRASTS}
    if part == PROMPT:
        a, b = CROSSED
        signs = {(a, PROMPT): 1.0, (a, TOWER): -1.0, (b, PROMPT): -1.0, (b, TOWER): 1.0}
        found[f"(prompt - tower) of {a} - (prompt - tower) of {b}"] = signs
    return found


def cells_of(runs: Sequence[Outcomes], classes: Mapping[str, int]) -> str:
    """Return clean and robust accuracies of the runs of a row."""
    return " | ".join(cell(runs, column, classes) for column in (metrics.CLEAN, *PROTOCOL.eps))


def trend(space: str, study: Study) -> str:
    """Run a space whose question is a trend."""
    return command(study.sweep(space))


def ladder(study: Study) -> str:
    """Attack prompts and test-time defences by an adversary of every level."""
    bench = study.bench()
    return bench.attacked(bench.rows(), study.ladder())


def prompts(study: Study) -> str:
    """Attack prompts, and prompts with images; then prompts against the number of classes."""
    names: dict[str, list[str]] = {multimodal.BASELINE: [study.clip]}
    for method in PROMPTED:
        names[method] = [each["checkpoint"] for each in trained(study.runs.final(method, TOWER, study.seeds), study.out)]
    said = io.StringIO()
    with redirect_stdout(said):
        multimodal.show(names, protocols.resolve(study.multimodal(), study.out), study.out)
    figure = storage.join(study.out, "class_counts.png")
    counts = command([sys.executable, str(HERE / "class_counts.py"), study.clip, "--set", "tiny-all", "--to", figure, *study.to])
    return f"{said.getvalue()}\n{counts}"


PIECES: dict[str, Callable[[Study], str]] = {
    "sets": sets,
    "clip": clip,
    "zero-shot": zero_shot,
    "rates": rates,
    TOWER: partial(compare, TOWER),
    PROMPT: partial(compare, PROMPT),
    **{space: partial(trend, space) for space in SWEEPS},
    "ladder": ladder,
    "prompts": prompts,
}


def plan(study: Study) -> None:
    """Print what each piece will take on this machine where nothing of it is there yet, by a few measured passes.

    TeCoA's training stands for all of its part of the model, plain CLIP for all models without a test-time defence.
    """
    print(command([*study.pretraining(), "--plan"]))
    if not storage.exists(storage.join(study.clip, "config.json")):
        raise UserError("the other pieces are forecast on the CLIP: run the piece `clip` first")
    share, actors = cluster.divide(2, 1), int(cluster.total()[0])
    train = {part: training.forecast(prepare(study.runs.config("TeCoA", part, 1e-3), study.out), share).seconds for part in (TOWER, PROMPT)}

    def attack(names: Sequence[str], protocol: Protocol) -> float:
        return attacks.forecast(names, protocols.resolve(protocol, study.out), study.out, actors, 0.0).seconds

    each = attack([study.clip], replace(PROTOCOL, n=study.n, seed=1))  # a seed of which there are no records
    many, few = len(METHODS) * len(study.seeds), 1 / 3  # of the steps, in short trainings
    seconds = {"rates": sum(3 * len(METHODS) * few * train[part] / 2 for part in train)}
    seconds |= {part: many * (train[part] / 2 + 1.25 * each) for part in train}
    defended = [written(settings, study.clip) for settings in DEFENDED]
    seconds["ladder"] = 13 * few * train[PROMPT] / 2 + 10 * attack([study.clip], study.ladder()) + 2 * attack(defended, study.ladder())
    seconds["prompts"] = (1 + len(PROMPTED) * len(study.seeds)) * attack([study.clip], study.multimodal())
    print("\n".join(f"{name}: at most {duration(value)}" for name, value in seconds.items()))
    for space in SWEEPS if storage.exists(study.runs.rates_file) else ():
        print(command([*study.sweep(space), "--plan"]))


def command(words: Sequence[str]) -> str:
    """Run a command and return it with what it says on stdout; raises UserError where it fails."""
    done = subprocess.run(list(words), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"ended with {done.returncode}: {shlex.join(words)}")
    return f"$ {shlex.join(words)}\n{done.stdout}"


def run(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", nargs="*", help=f"of {', '.join(PIECES)} (default: print what there is)")
    parser.add_argument("--data", default="../shared/data", help="folder of the archives (default: %(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--n", type=int, default=80, help="images of each set under attack (default: %(default)s)")
    parser.add_argument("--plan", action="store_true", help="say what the pieces will take, and end")
    parser.add_argument("--out", default="outputs/photographs")
    args = parser.parse_args(words)
    if unknown := [name for name in args.pieces if name not in PIECES]:
        raise UserError(f"no piece {unknown[0]!r}: there are {', '.join(PIECES)}")
    say_on_terminal()
    study = Study(storage.resolve(args.out), storage.resolve(args.data), tuple(args.seeds), args.n)
    if args.plan or set(args.pieces) - COMMANDS:
        cluster.connect()
    if args.plan:
        plan(study)
        return
    for name in args.pieces:
        storage.write_bytes(told(study, name), PIECES[name](study).encode())
    for name in args.pieces or PIECES:
        there = storage.exists(told(study, name))
        print(f"\n## {name}\n{storage.read_bytes(told(study, name)).decode() if there else NOT_RUN.format(name)}", flush=True)


def told(study: Study, piece: str) -> str:
    """Return where what a piece said is kept."""
    return storage.join(study.out, "pieces", f"{piece}.md")


if __name__ == "__main__":
    main(run)
