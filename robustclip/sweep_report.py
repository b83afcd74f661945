"""The end of a sweep: plain CLIP beside the trials, tables and figures from verified records, everything attached in MLflow."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from robustclip import figures, report, storage
from robustclip import model as models
from robustclip.cluster import total
from robustclip.config import Config
from robustclip.errors import UserError
from robustclip.evaluation import evaluate
from robustclip.findings import Finding, summary
from robustclip.probing import check
from robustclip.protocols import Protocol, Resolved, resolve
from robustclip.spaces import Space
from robustclip.tracking import Tracker, how_to_open
from robustclip.tuning import Outcome, Trial

log = logging.getLogger(__name__)

EXAMPLES = 6  # images in the picture of adversarial examples


def publish(space: Space, config: Config, outcome: Outcome, protocol: Protocol, out: str, tracker: Tracker, started: float) -> str:
    """Evaluate the base model too, write the report, log it to the sweep's MLflow run, and return the text a person reads at the end."""
    finished = sorted((trial for trial in outcome.trials if trial.result), key=lambda trial: list(trial.sample.values()))
    if not finished:
        reasons = "; ".join(f"{trial.label}: {trial.failure}" for trial in outcome.failures)
        raise UserError(f"no trial of {space.name} finished: {reasons}")
    resolved = resolve(protocol, out)
    names = [config.model, *(checkpoint(trial) for trial in finished)]
    cpus, gpus = total()
    share: dict[str, Any] = {"actors": max(1, int(gpus or cpus)), "gpus": 1.0 if gpus else 0.0}
    table = evaluate(names, resolved, out, **share)
    checks = check(names, config.model, resolved, table, out, **share, on_progress=log.info)
    titles = {models.display_name(config.model): f"CLIP ({config.model})"}
    titles |= {models.display_name(checkpoint(trial)): title(trial, outcome, space) for trial in finished}
    chosen = outcome.chosen or finished[-1]
    built = report.from_records(
        table,
        resolved.describe(),
        list(titles),
        names=titles,
        baseline=models.display_name(config.model),
        chosen=models.display_name(checkpoint(chosen)),
        checks=checks,
        seeds={f"{titles[first]} and its other seeds": group for first, group in models.same_but_seed(names).items()},
        notes=[
            f"{space.question.splitlines()[0]} Chosen by {space.metric} on held-out images of the fine-tuning set, never by a number above."
        ],
    )
    attacked = {"examples-undefended": examples(config.model, resolved), "examples-chosen": examples(checkpoint(chosen), resolved)}
    pictures = attacked | {"training": curves(finished)}
    page = built.write(storage.join(out, "reports", f"sweep-{space.name}-{resolved.hash}"), pictures)
    attach(tracker, outcome.parent, storage.parent_of(page), finished, resolved, out, checks)
    tracker.finish(outcome.parent, failed=bool(outcome.failures))
    return "\n".join([built.markdown(), *others(outcome), *times(finished, outcome, started), *places(out, page, chosen)])


def checkpoint(trial: Trial) -> str:
    """Return the checkpoint folder of a finished trial."""
    assert trial.result is not None
    return trial.result["run"]["checkpoint"]


def title(trial: Trial, outcome: Outcome, space: Space) -> str:
    """Return a trial's name in the table."""
    return trial.label + (f" (chosen by {space.metric})" if trial is outcome.chosen else "")


def curves(trials: list[Trial]) -> bytes:
    """Return the picture of every trial's training loss and held-out accuracies."""
    panels = {"loss": "loss", "val/clean": "held out, clean", "val/robust": "held out, robust"}
    rows: list[dict[str, float]] = []
    for trial in trials:
        assert trial.result is not None
        rows += [
            {"step": row["step"]} | {f"{panel}/{trial.label}": row[name] for name, panel in panels.items() if name in row}
            for row in trial.result["run"]["history"]
        ]
    return figures.training_curves(rows)


def examples(name: str, resolved: Resolved) -> bytes:
    """Return the picture of a few images of the first set, attacked under one model and the last eps: original, perturbation, attacked."""
    import torch

    from robustclip.cascade import predict
    from robustclip.learner import to_images

    (dataset, first), *_ = resolved.sets.items()
    protocol, loaded = resolved.protocol, models.load(name)
    ids, pixels, labels = resolved.read(dataset, first.rows[:EXAMPLES], loaded.preprocess.size)
    classifier = loaded.classifier(first.card.class_names, first.card.templates)
    classes = (*first.card.class_names, "no class")  # the last is that of NO_CLASS
    x, y = to_images(pixels, "cpu"), torch.as_tensor(labels)
    example = protocol.attacks[-1](classifier, x, y, ids, protocol.balls()[-1], protocol.seed)
    attacked = (example.images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    before, after = predict(classifier, x, len(x)), predict(classifier, example.images, len(x))
    return figures.adversarial_grid(pixels, attacked, [(classes[int(b)], classes[int(a)]) for b, a in zip(before, after, strict=True)])


def attach(
    tracker: Tracker,
    parent: str,
    folder: str,
    trials: list[Trial],
    resolved: Resolved,
    out: str,
    checks: Mapping[str, Sequence[Finding]],
) -> None:
    """Attach the report to the sweep's run, and each trial's records and checks to its own."""
    files = {storage.name_of(path): storage.read_bytes(path) for path in storage.list_files(folder)}
    tracker.artefacts(parent, files)
    for trial in trials:
        assert trial.result is not None
        name = checkpoint(trial)
        cells = resolved.cells(models.display_name(name), models.identity(name))
        run_id = tracker.run(trial.key, trial.label, {}, parent)
        kept = {f"records/{cell.dataset}-{cell.key}.parquet": storage.read_bytes(f"{out}/records/{cell.key}.parquet") for cell in cells}
        tracker.artefacts(run_id, kept)
        tracker.tag(run_id, checks=summary(checks[models.display_name(name)]))
        tracker.finish(run_id)


def others(outcome: Outcome) -> list[str]:
    """Return a line for every trial that has no place in the table, with the reason."""
    stopped = [f"stopped early: {trial.label} after epoch {trial.stopped:g}" for trial in outcome.trials if trial.stopped]
    return [*stopped, *(f"failed: {trial.label}: {trial.failure}" for trial in outcome.failures)]


def times(trials: list[Trial], outcome: Outcome, started: float) -> list[str]:
    """Return the lines that say how the time went; trials run side by side, so their sum is more than the whole."""
    spent = {part: sum(trial.result[f"seconds/{part}"] for trial in trials if trial.result) for part in ("training", "evaluation")}
    whole = time.monotonic() - started
    return [
        "",
        f"time: {whole:.0f} s in all; {len(trials)} trials, {outcome.concurrent} at a time: "
        f"training {spent['training']:.0f} s, evaluation {spent['evaluation']:.0f} s (summed over trials)",
    ]


def places(out: str, page: str, chosen: Trial) -> list[str]:
    """Return where everything lies and how to open it."""
    return [
        f"report      {page}",
        f"records     {out}/records",
        f"checkpoint  {checkpoint(chosen)}",
        f"MLflow      {how_to_open(out)}",
    ]
