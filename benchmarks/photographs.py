"""The papers' comparison on photographs, in small: a CLIP of 32 px trained here, fine-tuned by every method, attacked on other classes.

    python benchmarks/photographs.py sets --data ../shared/data     # archives of Tiny-ImageNet at 32 px, CIFAR-10 and clothing
    python benchmarks/photographs.py clip                           # pipelines/pretrain.py photos, 90 minutes
    python benchmarks/photographs.py zero-shot rates tower prompt shift
    python benchmarks/photographs.py epsilon interpolation trainable first_blocks train_size ladder prompts
    python benchmarks/photographs.py [--plan]                       # all tables, and what did not run; or what each piece will take

A piece is done by its own command, in an hour or less of two cores but for the CLIP's; stopped, the same command goes on. What it says is
kept under --out, where all else lies too. Pieces: `sets` (see photo_sets.py); `clip`; `zero-shot`, what it knows, of scanned digits too;
`rates`, a rate for every method chosen on held-out images of the fine-tuning classes, in short trainings; `tower` and `prompt`, the
comparison on the whole visual tower and on deep prompt tokens, two seeds, and how sure the models are of it; `shift`, TeCoA and SAFT (which
learns from descriptions of the classes) attacked under descriptions and scored under names; `epsilon`, `interpolation`, `trainable`,
`first_blocks`, `train_size`, the sweeps of these names; `ladder`, test-time defences by what attackers know; `prompts`, attacks on class
prompts and on both, and against the number of classes.

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
from photo_plan import plan
from photo_runs import METHODS, PROBE, PROBED, PROMPT, PROMPTED, ROWS, SAFT, TOWER
from photo_sets import SCORED
from photo_study import INSIDE, PROTOCOL, SWEEPS, Study
from tables import cell, losses, trained, verdict

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError, main
from robustclip.evaluation import protocols
from robustclip.records import calibration, metrics, survival
from robustclip.records.survival import Outcomes
from robustclip.results.sheets import percent
from robustclip.runtime import cluster
from robustclip.runtime.cli import say_on_terminal

HERE = Path(__file__).resolve().parent
CONTRASTS = [
    *(("TeCoA", other) for other in ("Adv.", "CE")),
    *((other, "TeCoA") for other in ("TeCoA + FARE", "FARE", "PMG-AFT", "MMCoA", SAFT)),
]
CROSSED = ("Adv.", "TeCoA")  # the paper's interaction: without class names a prompt beats fine-tuning by more than with them
COMMANDS = {"sets", "clip", "shift", *SWEEPS}  # pieces that need no Ray in this process
NOT_RUN = "did not run: python benchmarks/photographs.py {}"


# --- pieces, each of which returns what it has to say -----------------------------------------------------------------------------------


def sets(study: Study) -> str:
    """Prepare the sets."""
    return "\n".join(photo_sets.make_sets(study.data, study.out))


def clip(study: Study) -> str:
    """Train the CLIP."""
    return command(study.pretraining())


def zero_shot(study: Study) -> str:
    """Say what the CLIP knows, set by set, and what the checks found on it."""
    lines = ["| set | texts | images | clean | clean of those attacked | eps 1 | eps 2 |", f"|{'---|' * 7}"]
    for texts, protocol in study.known.items():
        (found,) = study.outcomes([study.clip], protocol).values()
        for name, each in found.items():
            columns = (metrics.CLEAN, survival.CLEAN_ATTACKED, *protocol.eps)
            lines.append(f"| {name} | {texts} | {len(each.ids)} | {' | '.join(cell([{name: each}], c, {name: 2}) for c in columns)} |")
    facts = [f"\n{said}" for each in study.known.values() for said in (study.stated(each), study.checked([study.clip], each))]
    return "\n".join([*lines, *facts])


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
    runs = {row[0]: [found[0][0][run] for run in called[row]] for row in rows}

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
    lines += sure({"CLIP": [found[0][0][models.display_name(study.clip)]], **runs})
    facts = [*map(study.stated, (outside, inside)), study.checked(names, outside)]
    return "\n".join([*lines, *(f"\n{said}" for said in facts)])


def sure(rows: Mapping[str, Sequence[Outcomes]]) -> list[str]:
    """Return the table of how sure the runs of every row were of their answers, a value a run, clean and attacked at the largest eps."""
    coverages = (f"accuracy at {share:.0%} coverage" for share in calibration.COVERAGES)
    lines = [f"\n| how sure, a value a seed | images | ECE | {' | '.join(coverages)} |", f"|{'---|' * (3 + len(calibration.COVERAGES))}"]
    for title, runs in rows.items():
        for column, images in ((metrics.CLEAN, "clean"), (eps := PROTOCOL.eps[-1], f"eps {eps:g}")):
            found = [each for run in runs if (each := calibration.calibration(run, column))]
            values = zip(*((each.ece, *each.selective) for each in found), strict=True)
            lines.append(f"| {title} | {images} | {' | '.join('; '.join(map(percent, each)) for each in values)} |")
    return lines


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


def shift(study: Study) -> str:
    """Attack towers under descriptions of the classes and score them under names."""
    return command(study.shift())


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
    "shift": shift,
    **{space: partial(trend, space) for space in SWEEPS},
    "ladder": ladder,
    "prompts": prompts,
}


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
        print(command([*study.pretraining(), "--plan"]))
        print("\n".join(plan(study)))
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
