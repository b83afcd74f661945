"""The end of a sweep: plain CLIP beside the trials, tables and figures from verified records, everything attached in MLflow."""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.evaluation.complete import attacked, checked
from robustclip.evaluation.protocols import Protocol, Resolved, resolve
from robustclip.evaluation.wanted import same_but_seed
from robustclip.records import metrics, survival
from robustclip.records.findings import Finding, summary
from robustclip.records.rows import CLEAN
from robustclip.results import figures, report
from robustclip.results.page import Page
from robustclip.runtime.store import how_to_open
from robustclip.runtime.tracking import RESULTS, Run, Tracker
from robustclip.sweeps import trends
from robustclip.sweeps.spaces import Space
from robustclip.sweeps.trials import Trial
from robustclip.sweeps.tuning import Outcome
from robustclip.training import proxy
from robustclip.training.config import Config

log = logging.getLogger(__name__)

EXAMPLES = 6  # images in the picture of adversarial examples


def publish(
    space: Space, config: Config, outcome: Outcome, protocol: Protocol, out: str, tracker: Tracker, started: float, register: str = ""
) -> str:
    """Evaluate the base model too, write the report, log it to the sweep's MLflow run, and return the text a person reads at the end.

    The chosen trial's model becomes the next version of the registered model `register`, if that names one.
    """
    finished = sorted((trial for trial in outcome.trials if trial.result), key=lambda trial: order(space, trial))
    if not finished:
        reasons = "; ".join(f"{trial.label}: {trial.failure}" for trial in outcome.failures)
        raise UserError(f"no trial of {space.name} finished: {reasons}")
    resolved = resolve(protocol, out)
    names = [config.model, *(trial.model for trial in finished)]
    table = attacked(names, resolved, out, lambda done: log.info("%s", done))
    checks = checked(names, config.model, resolved, table, out, log.info)
    titles = {models.display_name(config.model): f"CLIP ({config.model})"}
    titles |= {models.display_name(trial.model): title(trial, outcome) for trial in finished}
    chosen = outcome.chosen or finished[-1]
    built = report.from_records(
        table,
        resolved.describe(),
        list(titles),
        names=titles,
        baseline=models.display_name(config.model),
        chosen=models.display_name(chosen.model),
        checks=checks,
        seeds={f"{titles[first]} and its other seeds": group for first, group in same_but_seed(models.called(names)).items()},
        notes=[
            f"{space.question.splitlines()[0]} Chosen by {outcome.chosen_by} on held-out images of the fine-tuning set, "
            "never by a number above.",
            *judged(finished, outcome),
            *([f"Beside the trend, as published and on other models and sets: {space.published.source}."] if space.published else []),
        ],
    )
    built = replace(built, notes=(*built.notes, *trades(built)))
    shown = {"examples-undefended": examples(config.model, resolved), "examples-chosen": examples(chosen.model, resolved)}
    pictures = trend(space, finished, built) | shown | {"training": curves(finished)}
    page = Page(built).write(storage.join(out, "reports", f"sweep-{space.name}-{resolved.hash}"), pictures)
    attach(tracker, outcome.parent, storage.parent_of(page), finished, resolved, out, checks)
    tracker.artefacts(outcome.parent, {"space.json": told(space), "protocol.json": json.dumps(resolved.describe(), indent=1).encode()})
    if register:
        tracker.register(tracker.run(chosen.key, chosen.label, {}, outcome.parent), register)
    tracker.describe(outcome.parent, Page(built).markdown())
    tracker.results(outcome.parent, headline(chosen))
    tracker.finish(outcome.parent, failed=bool(outcome.failures))
    return "\n".join([Page(built).markdown(), *others(outcome), *times(finished, outcome, started), *places(out, page, chosen)])


def told(space: Space) -> bytes:
    """Return a space as JSON: its question, what varies and what is fixed."""
    return json.dumps({**asdict(space), "space": dict(space.space)}, indent=1, default=str).encode()


def headline(chosen: Trial) -> dict[str, float]:
    """Return what the sweep's own run shows of the chosen trial: its means over sets and its held-out accuracies."""
    return {name: value for name, value in (chosen.result or {}).items() if name.startswith(RESULTS) and name.count("/") == 1}


def order(space: Space, trial: Trial) -> list[tuple[float, int]]:
    """Return where a trial stands in the table: by its numbers, and behind them by the place in the grid of what is none."""
    grids = {path: values.get("grid_search", []) if isinstance(values, Mapping) else [] for path, values in space.space.items()}
    return [
        (value, 0) if isinstance(value, int | float) else (math.inf, grids[path].index(value) if value in grids[path] else 0)
        for path, value in trial.sample.items()
    ]


def title(trial: Trial, outcome: Outcome) -> str:
    """Return a trial's name in the table."""
    return trial.label + (f" (chosen by {outcome.chosen_by})" if trial is outcome.chosen else "")


def judged(finished: Sequence[Trial], outcome: Outcome) -> list[str]:
    """Return what the strong numbers say of the proxy that trials competed on, a warning on the log where it misleads; else nothing."""
    if outcome.chosen_by != proxy.STRONG:
        return []
    found = proxy.agreement({trial.label: (trial.result[proxy.PROXY], trial.result[proxy.STRONG]) for trial in finished if trial.result})
    said = found.lines()
    if found.misleads:
        log.warning(said[-1])
    return said


def trades(built: report.Report) -> list[str]:
    """Return a sentence that names the Pareto set at every eps: the models that the line in the figure joins."""
    ranked = [model for model in built.outcomes if model not in built.unranked]
    sets = []
    for eps in built.eps if ranked else ():
        at = [(built.mean(model, CLEAN).mean, built.mean(model, eps).mean) for model in ranked]
        sets.append(f"ε={eps:g}: {', '.join(built.name(ranked[i]) for i in metrics.pareto(at))}")
    said = "Pareto set, the ranked models that no other one matches in both clean and robust accuracy and beats in one"
    return [f"{said}: {'; '.join(sets)}."] if sets else []


def trend(space: Space, finished: Sequence[Trial], built: report.Report) -> dict[str, bytes]:
    """Return the picture of the space's question, if the space says what its axis is."""
    if space.axis is None:
        return {}
    samples = {models.display_name(trial.model): trial.sample for trial in finished}
    columns = {name: column for column, name in built.columns.items() if column != survival.CLEAN_ATTACKED}
    means = {name: {model: built.mean(model, column) for model in samples} for name, column in columns.items()}
    undefended = {name: built.mean(built.baseline, column) for name, column in columns.items()}
    return {"trend": trends.trend(space.axis, trends.lines(space.axis, samples, means), undefended, space.published)}


def curves(trials: Sequence[Trial]) -> bytes:
    """Return the picture of every training; trials that only interpolate share one."""
    runs = {trial.result["run"]["key"]: (trial.label, trial.result["run"]["history"]) for trial in reversed(trials) if trial.result}
    return trends.training(dict(reversed(runs.values())))


def examples(name: str, resolved: Resolved) -> bytes:
    """Return the picture of a few images of the first set, attacked under one model and the last eps: original, perturbation, attacked."""
    from robustclip.evaluation.cascade import predict
    from robustclip.evaluation.computing import on_device

    (dataset, first), *_ = resolved.sets.items()
    protocol = resolved.protocol
    classifier, x, y, ids = on_device(models.load(name), resolved, dataset, first.rows[:EXAMPLES])
    classes = (*first.card.class_names, "no class")  # the last is that of NO_CLASS
    example = protocol.attacks[-1](classifier, x, y, ids, protocol.balls()[-1], protocol.seed)
    pixels, attacked = ((each.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy() for each in (x, example.images))
    before, after = (predict(classifier, each, ids, len(x)) for each in (x, example.images))
    return figures.adversarial_grid(pixels, attacked, [(classes[int(b)], classes[int(a)]) for b, a in zip(before, after, strict=True)])


def attach(
    tracker: Tracker,
    parent: Run,
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
        name = trial.model
        cells = resolved.cells(models.display_name(name), models.identity(name))
        run = tracker.run(trial.key, trial.label, {}, parent)
        kept = {f"records/{cell.dataset}-{cell.key}.parquet": storage.read_bytes(f"{out}/records/{cell.key}.parquet") for cell in cells}
        tracker.artefacts(run, kept)
        tracker.tag(run, checks=summary(checks[models.display_name(name)]))
        tracker.finish(run)


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
        f"checkpoint  {chosen.model}",
        f"MLflow      {how_to_open(out, 12 * ' ')}",
    ]
