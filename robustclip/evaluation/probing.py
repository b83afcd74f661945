"""The checks beside the numbers: which images of a run they probe, and their findings as one file per model and protocol."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robustclip import names as models
from robustclip.attacks import Attack
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.evaluation.computing import library_versions, on_device
from robustclip.evaluation.protocols import Resolved
from robustclip.records import findings
from robustclip.records.findings import Finding
from robustclip.records.rows import CLEAN
from robustclip.runtime.cluster import use_threads

PROBE = 12  # images, one micro-batch: the checks repeat the protocol's attacks on them a dozen times over
QUERIES = 100  # of the black-box attack on each


def check(
    names: Sequence[str],
    baseline: str,
    resolved: Resolved,
    table: pa.Table,
    out: str,
    *,
    actors: int,
    cpus: float = 1.0,
    gpus: float = 0.0,
    on_progress: Callable[[str], None] = lambda said: None,
) -> dict[str, list[Finding]]:
    """Return the findings on the models `names` by what records call them, running only the checks that have no file yet.

    `table` holds the records of all of them and of the undefended model `baseline`.
    """
    import ray

    names, baseline = [models.absolute(name) for name in names], models.absolute(baseline)
    missing = unchecked(names, baseline, resolved, out)
    # "DEFAULT": inside a trial Ray would otherwise look for room in the trial's own placement group, which has none.
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="DEFAULT")(check_model)
    waiting = list(missing)
    running: list[Any] = []
    while waiting or running:
        while waiting and len(running) < actors:
            name = waiting.pop(0)
            both = pa.array([models.identity(each) for each in (name, baseline)])
            rows = table.filter(pc.is_in(table["model_sha256"], both))
            running.append(task.remote(name, baseline, resolved, rows, out, max(1, int(cpus))))
        ready, running = ray.wait(running, num_returns=1)
        try:
            ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError) else error) from error
        on_progress(f"checked {len(missing) - len(waiting) - len(running)}/{len(missing)} models")
    identities = {display: models.identity(name) for name, display in models.called(names).items()}
    return findings.read(out, resolved.hash, identities)


def unchecked(names: Sequence[str], baseline: str, resolved: Resolved, out: str) -> list[str]:
    """Return the models `names` on which some check beside this baseline has no finding yet."""
    return [name for name in names if not _stored(name, baseline, resolved, out)]


def _stored(name: str, baseline: str, resolved: Resolved, out: str) -> bool:
    """Return whether the findings of all checks on a model beside this baseline are there."""
    from robustclip.evaluation.checks import CHECKS

    path = findings.path(out, resolved.hash, models.identity(name))
    if not storage.exists(path):
        return False
    stored = storage.read_json(path)
    made = {finding["number"] for finding in stored["findings"]}  # before there were as many checks, fewer
    return stored["baseline_sha256"] == models.identity(baseline) and made >= CHECKS.keys()


def check_model(name: str, baseline: str, resolved: Resolved, table: pa.Table, out: str, threads: int) -> None:
    """Run all checks on one model and write what they found: the body of a Ray task."""
    from robustclip.evaluation.checks import run_checks

    use_threads(threads)
    subject = probe(name, baseline, resolved, table)
    about = {
        "model": subject.name,
        "model_sha256": subject.model_sha256,
        "baseline_sha256": models.identity(baseline),
        "protocol_hash": resolved.hash,
        "dataset": subject.dataset,
        "ids": subject.ids,
        "versions": library_versions(),
    }
    found = findings.as_json(run_checks(subject))
    storage.write_json(findings.path(out, resolved.hash, subject.model_sha256), about | {"findings": found})


def probe(name: str, baseline: str, resolved: Resolved, table: pa.Table) -> Any:
    """Return the Subject of a model: PROBE images spread over its best set, met as the evaluator does, at the smallest and largest eps."""
    from robustclip.attacks.classes import for_classes
    from robustclip.attacks.square import Square
    from robustclip.evaluation.checks import Subject

    (called, sha256), (baseline_called, baseline_sha256) = (_recorded(each, table) for each in (name, baseline))
    model = models.load_exactly(name, sha256)
    dataset = best_set(resolved, table.filter(pc.equal(table["model"], called)))
    attacked = resolved.sets[dataset].rows[: resolved.protocol.attacked]
    rows = attacked[np.unique(np.linspace(0, len(attacked) - 1, PROBE).astype(int))]
    classifier, images, labels, ids = on_device(model, resolved, dataset, rows)
    undefended = classifier if baseline == name else on_device(models.load_exactly(baseline, baseline_sha256), resolved, dataset, rows)[0]
    attacks = for_classes(on_images(resolved.protocol.attacks_on(dataset)), len(classifier.class_names))
    ends = tuple(dict.fromkeys((resolved.protocol.eps[0], resolved.protocol.eps[-1])))
    micro_batch = min(PROBE, resolved.protocol.micro_batch)
    return Subject(
        classifier=classifier,
        attacked=classifier,
        images=images,
        labels=labels,
        ids=ids,
        classes=len(classifier.class_names),
        protocol=replace(resolved.protocol, attacks=tuple(attacks.values()), eps=ends, micro_batch=micro_batch),
        dataset=dataset,
        model=model,
        source=name,
        model_sha256=sha256,
        resolved=resolved,
        records=table,
        name=called,
        baseline=undefended,
        baseline_name=baseline_called,
        black_box=Square(queries=QUERIES),
        selection_ids=models.selection(name),
    )


def _recorded(name: str, table: pa.Table) -> tuple[str, str]:
    """Return how records call the model of a name, and its identity; raises UserError where they are of other weights than are there."""
    sha256 = models.identity(name)
    rows = table.filter(pc.equal(table["model_sha256"], sha256))
    if not len(rows):
        raise UserError(f"{name} was replaced since it was attacked: these records are of other weights; run the same command again")
    known = pc.unique(rows["model"]).to_pylist()
    return (display if (display := models.display_name(name)) in known else known[0]), sha256


def on_images(attacks: Sequence[Attack]) -> list[Attack]:
    """Return the attacks that leave the prompts alone, which is what the checks are about; without any, the image's part of the others.

    Of a ladder those that meet the scored model itself: plain attacks, which is BPDA where it adapts. No universal perturbation, which
    looks at no image that it is added to, so that what checks change in an attack on an image means nothing to it.
    """
    from robustclip.attacks import Universal
    from robustclip.attacks.levels import Aimed
    from robustclip.attacks.multimodal import Multimodal, Separate
    from robustclip.attacks.pgd import PGD
    from robustclip.attacks.shift import Shifted

    alone = [attack for attack in attacks if not isinstance(attack, Multimodal | Aimed | Shifted)]
    alone += [attack.attack for attack in attacks if isinstance(attack, Aimed) and attack.level == "A3"]
    alone = [attack for attack in alone if not isinstance(attack, Universal)]
    parts: list[Attack] = [attack.image for attack in attacks if isinstance(attack, Separate)]
    return alone or parts or [PGD(20)]


def best_set(resolved: Resolved, table: pa.Table) -> str:
    """Return the set with the highest clean accuracy: an image that is wrong from the start tells nothing of an attack.

    Sets on which an attack is left out or runs with fewer targets come last.
    """
    right = table.filter(pc.and_(pc.equal(table["attack"], CLEAN), table["correct"]))["dataset"].to_pylist()
    whole: Mapping[str, bool] = {name: not resolved.reduced[name] and not resolved.skips[name] for name in resolved.sets}
    return max(resolved.sets, key=lambda name: (whole[name], right.count(name) / len(resolved.sets[name].rows)))
