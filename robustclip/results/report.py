"""From records to what people read: Markdown, CSV, LaTeX, figures and one HTML page that needs nothing else."""

import base64
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from robustclip.base import storage
from robustclip.base.errors import UserError, did_you_mean
from robustclip.evaluation.rewritings import Found, as_csv
from robustclip.records import findings, ladder, metrics
from robustclip.records.rows import CLEAN, NO_CLASS
from robustclip.results import figures, sheets
from robustclip.results.figures import Sheet

MARK = "✗"
FEW = 10  # survivors that are named
HOW_TO_RANK = {
    findings.UNCHECKED: "run pipelines/evaluate.py again: it checks what was not checked and does no finished work twice",
    findings.GREY_BOX: "compare models under a white-box protocol",
}


@dataclass(frozen=True)
class Report:
    """Everything that is printed about models under one protocol; `chosen` is compared with `baseline`, if it is another model.

    `protocol` is what the evaluator wrote about it, `names` maps models to what they are called, `settings` attacks to how they were run,
    `checks` models to what the checks found; without findings a model is not ranked. `seeds` names the
    groups of models that differ in their training seed alone. `alone` holds what became of the images under each attack by itself, where
    attacks were independent, `prompts` what text attacks made of the class prompts, `levels` what every attacker level left.
    """

    outcomes: Mapping[str, metrics.Outcomes]
    protocol: Mapping[str, Any]
    protocol_hash: str
    baseline: str
    chosen: str
    names: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, Sequence[findings.Finding]] = field(default_factory=dict)
    seeds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    alone: Mapping[tuple[float, str], Mapping[str, metrics.Outcomes]] = field(default_factory=dict)
    prompts: Sequence[Found] = ()
    levels: Sequence[ladder.Rung] = ()

    @cached_property
    def eps(self) -> tuple[float, ...]:
        """Return the radii in 1/255, ascending."""
        return tuple(sorted(float(e) for e in self.protocol["eps"]))

    @cached_property
    def columns(self) -> dict[metrics.Column, str]:
        """Return the columns of the main table with their titles."""
        titles: dict[metrics.Column, str] = {CLEAN: "clean"}
        if self.protocol.get("attacked"):
            titles[metrics.CLEAN_ATTACKED] = "clean, attacked images"
        return titles | {e: f"robust ε={e:g}" for e in self.eps}

    @cached_property
    def classes(self) -> dict[str, int]:
        """Return set -> number of classes, in the protocol's order."""
        return {name: len(each["class_names"]) for name, each in self.protocol["sets"].items()}

    @cached_property
    def real(self) -> list[str]:
        """Return the sets that hold real images."""
        return [name for name, each in self.protocol["sets"].items() if each.get("real")]

    @cached_property
    def reduced(self) -> str:
        """Return which attacks ran with fewer targets, or not at all, on which set: a sentence with a space before it, or nothing."""
        said = []
        for name, each in self.protocol["sets"].items():
            changes = [f"{attack} as {instead}" if instead else f"no {attack}" for attack, instead in each.get("reduced", {}).items()]
            said += [f"{name} ({self.classes[name]} classes): {', '.join(changes)}"] if changes else []
        return f" Reduced where a set has too few classes: {'; '.join(said)}." if said else ""

    @cached_property
    def grey_box(self) -> str:
        """Return what must stand beside every number that a defence-aware attacker was kept from, nothing for white-box ones."""
        level = str(self.protocol.get("level", ""))
        return f"Attacker level {level}, grey-box: comparable, never ranked. " if level.startswith("grey-box") else ""

    def name(self, model: str) -> str:
        """Return what a model is called in print."""
        return self.names.get(model, model)

    def mean(self, model: str, column: metrics.Column) -> metrics.Macro:
        """Return the macro mean of a model over all sets of the protocol."""
        return metrics.macro(self.outcomes[model], column, self.classes)

    @cached_property
    def differences(self) -> dict[metrics.Column, metrics.Difference]:
        """Return the paired differences of the chosen model from the baseline."""
        chosen, baseline = self.outcomes[self.chosen], self.outcomes[self.baseline]
        return {column: metrics.paired_difference(chosen, baseline, column) for column in self.columns}

    @cached_property
    def unranked(self) -> dict[str, str]:
        """Return model -> why its numbers may not be ranked: a hard failure, an attacker that was kept from something, no checks at all."""
        level = str(self.protocol.get("level", findings.WHITE_BOX))
        found = {model: findings.rankable(self.checks.get(model, ()), level) for model in self.outcomes}
        return {model: why for model, (ranked, why) in found.items() if not ranked}

    def marked(self, model: str) -> str:
        """Return what a model is called in a table, with MARK where a check keeps its numbers out of rankings."""
        return self.name(model) + (f" {MARK}" if model in self.unranked and not self.grey_box else "")

    @cached_property
    def marks(self) -> str:
        """Return what MARK means, with a space before it, where it is used."""
        return f" {MARK} not to be ranked, see the checks." if self.unranked and not self.grey_box else ""

    @cached_property
    def compared(self) -> bool:
        """Return whether there are two models to compare and both may be ranked."""
        return self.chosen != self.baseline and not {self.chosen, self.baseline} & set(self.unranked)

    @cached_property
    def sheets(self) -> list[Sheet]:
        """Return the tables in the order in which they are read."""
        against = [sheets.paired(self)] if self.compared else []
        against += [sheets.luck(self)] if self.seeds else []
        against += [sheets.without_chance(self)] if 0 < len(self.at_chance) < len(self.classes) else []
        stages = [sheets.alone(self)] if self.alone else [sheets.stages(self)] if len(self.counted) > 1 else []
        rewritten = [sheets.prompts(self)] if self.prompts else []
        levels = [sheets.levels(self), sheets.cost_of_levels(self)] if self.levels else []
        return [sheets.main(self), *levels, *against, *stages, *rewritten, sheets.checks(self), sheets.per_set(self)]

    @cached_property
    def counted(self) -> list[str]:
        """Return the attacks of the worst case: all but those whose numbers stand apart."""
        return [attack for attack in self.protocol["attacks"] if attack not in self.protocol.get("apart", ())]

    @cached_property
    def at_chance(self) -> list[str]:
        """Return the sets on which some model's clean accuracy cannot be told from guessing."""
        return metrics.at_chance(self.outcomes, self.classes)

    def verdict(self, column: metrics.Column) -> str:
        """Return one plain sentence on whether the chosen model is better than the baseline."""
        found, a, b = self.differences[column], self.name(self.chosen), self.name(self.baseline)
        what = {1: "is better than", -1: "is worse than", 0: "is not distinguishable from"}[found.sign]
        few = f"; only {found.discordant} images tell them apart" if found.discordant < metrics.MIN_DISCORDANT else ""
        interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
        return f"{self.columns[column]}: {a} {what} {b} ({100 * found.point:+.1f} points, n={found.n:,}, 95 % {interval}{few})"

    def comparison(self) -> str:
        """Return the paired difference as Markdown: the means, McNemar's test for every set, one sentence per column.

        Raises UserError when one of the two may not be ranked.
        """
        for model in (self.chosen, self.baseline):
            if model in self.unranked:
                raise UserError(
                    f"{self.name(model)} cannot be compared under protocol {self.protocol['name']}: {self.unranked[model]}; "
                    f"{HOW_TO_RANK.get(self.unranked[model], 'see the checks in its report')}"
                )
        sentences = "".join(f"- {self.verdict(column)}\n" for column in self.columns)
        return f"{sheets.paired(self).markdown()}\n{sheets.set_by_set(self).markdown()}\n{sentences}"

    def _survivors(self) -> list[str]:
        """Return a sentence for every model of which FEW images or less survive the largest eps: those are worth a look."""
        said, largest = [], self.eps[-1]
        for model, seen in self.outcomes.items():
            ids = [str(id_) for each in seen.values() for id_ in each.ids[each.attacked][each.flags(largest)]]
            said += [f"{self.name(model)} is still right at ε={largest:g} on {', '.join(ids)}."] if 0 < len(ids) <= FEW else []
        return said

    def meaning(self) -> list[str]:
        """Return sentences on what was run and what the numbers are and are not."""
        attacks = [f"{name} ({self.settings[name]})" if self.settings.get(name) else name for name in self.protocol["attacks"]]
        rendered = [name for name in self.classes if name not in self.real]
        world = [f"{len(rendered)} of {len(self.classes)} sets are rendered, not photographed: this is no benchmark of real CLIP."]
        skipped = [
            f"On {name} these attacks were not run: {', '.join(each['skips'])}."
            for name, each in self.protocol["sets"].items()
            if each.get("skips")
        ]
        return [
            *filter(None, [self.grey_box.strip()]),
            f"Protocol {self.protocol['name']}, hash {self.protocol_hash}. Numbers under another hash must not be compared with these.",
            f"Attacks, in this order: {', '.join(attacks)}. Nothing else was tried.",
            *skipped,
            *([f"{APART}: {', '.join(self.protocol['apart'])}."] if self.protocol.get("apart") else []),
            "Robust accuracy is counted per image in the worst case over these attacks. It is an upper bound, not a certificate: "
            "a stronger attack can only lower it.",
            "Intervals cover which images were drawn. They do not cover the luck of training or what would happen on other sets.",
            *(world if rendered else []),
            *self._survivors(),
            *self.notes,
        ]

    def markdown(self) -> str:
        """Return all tables and what they mean as Markdown."""
        meaning = "".join(f"- {line}\n" for line in self.meaning())
        return "\n".join(sheet.markdown() for sheet in self.sheets) + f"\n## What these numbers are\n\n{meaning}"

    def csv(self, per_set: bool = False) -> str:
        """Return one line per model and column with shares in [0, 1]: the means over sets, or the sets one by one."""
        lines: list[dict[str, Any]] = []
        for model in self.outcomes:
            for column in self.columns:
                line = {
                    "model": model,
                    "column": column if isinstance(column, str) else "robust",
                    "eps": 0.0 if isinstance(column, str) else column,
                }
                for name in self.classes if per_set else [None]:
                    found = self.mean(model, column) if name is None else metrics.accuracy(self.outcomes[model][name], column)
                    values = {key: value for key, value in vars(found).items() if key != "sets"}
                    where = {"set": name} if per_set else {"sets": len(self.classes)}
                    lines.append({**line, **where, **values, "protocol": self.protocol["name"], "protocol_hash": self.protocol_hash})
        writer = csv.DictWriter(text := io.StringIO(), list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def figures(self) -> dict[str, bytes]:
        """Return name -> PNG of the figures that records alone can give."""
        means = {c: {self.name(model): self.mean(model, c) for model in self.outcomes} for c in self.columns}
        clean, robust = means[CLEAN], {e: means[e] for e in self.eps}
        ranked = [self.name(model) for model in self.outcomes if model not in self.unranked]
        drawn = {"clean_against_robust": figures.curve(clean, robust, ranked)}
        if len(self.eps) > 1:  # of one radius it would say no more
            security = {name: {0.0: clean[name], **{e: robust[e][name] for e in self.eps}} for name in clean}
            drawn["security_curve"] = figures.security_curve(security)
        if self.levels:
            rungs = {rung.title: rung for rung in self.levels if rung.eps == self.eps[-1]}
            left = {
                title: {self.name(model): metrics.macro(each, rung.eps, self.classes) for model, each in rung.outcomes.items()}
                for title, rung in rungs.items()
            }
            grey = {title for title, rung in rungs.items() if rung.grey}
            drawn["attacker_levels"] = figures.levels(clean, left, robust[self.eps[-1]], grey)
        return drawn

    def html(self, pictures: Mapping[str, bytes]) -> str:
        """Return one page that needs no other file, no script and no network; pictures are PNGs by name."""
        main, *rest = (sheet.html() for sheet in self.sheets)
        drawn = "".join(
            f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
            f"<figcaption>{escape(figures.CAPTIONS.get(name, name))}</figcaption></figure>\n"
            for name, png in pictures.items()
        )
        meaning = "".join(f"<li>{escape(line)}</li>\n" for line in self.meaning())
        title = escape(f"Robustness under protocol {self.protocol['name']}")
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
            f"<title>{title}</title>\n<style>{figures.STYLE}</style></head>\n<body><h1>{title}</h1>\n"
            f"<p class=caption>protocol hash <code>{escape(self.protocol_hash)}</code></p>\n{main}{drawn}{''.join(rest)}"
            f"<section><h2>What these numbers are</h2><ul>\n{meaning}</ul></section></body></html>\n"
        )

    def write(self, folder: str, pictures: Mapping[str, bytes] | None = None) -> str:
        """Write table.md, table.csv, per_set.csv, table.tex, every figure and report.html into a folder; return where the page lies."""
        drawn = {**self.figures(), **(pictures or {})}
        tables = {"table.md": self.markdown(), "table.csv": self.csv(), "per_set.csv": self.csv(per_set=True)}
        tables |= {sheets.PROMPTS: as_csv(self.prompts)} if self.prompts else {}
        texts = {**tables, "table.tex": self.sheets[0].latex(), "report.html": self.html(drawn)}
        for name, png in drawn.items():
            storage.write_bytes(storage.join(folder, f"{storage.safe_name(name)}.png"), png)
        for name, text in texts.items():
            storage.write_bytes(storage.join(folder, name), text.encode())
        return storage.join(folder, "report.html")


APART = "Shown and in no worst case (the label is known to the attacker, or a prompt may name another class)"
JSON_SIGNS = str.maketrans("", "", '{}"')


def from_records(
    table: pa.Table,
    protocol: Mapping[str, Any],
    models: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    baseline: str | None = None,
    chosen: str | None = None,
    checks: Mapping[str, Sequence[findings.Finding]] | None = None,
    seeds: Mapping[str, Sequence[str]] | None = None,
    notes: Sequence[str] = (),
    prompts: Sequence[Found] = (),
) -> Report:
    """Return the report on models (default: all, baseline the first and chosen the last) from records of one protocol.

    Raises UserError when a model is unknown or has not seen every image of every set of the protocol that the others have seen.
    """
    if models:
        for model in models:
            _known(model, pc.unique(table["model"]).to_pylist())
        table = table.filter(pc.is_in(table["model"], pa.array(models)))
    skips = {name: each.get("skips", ()) for name, each in protocol["sets"].items()}
    found = metrics.worst_case(table, protocol["attacks"], protocol["eps"], skips, protocol.get("apart", ()))
    outcomes = {model: found[model] for model in models or found}
    for model, seen in outcomes.items():
        _check_finished(model, seen, protocol)
    metrics.check_same_images(outcomes)
    names = dict(names or {})
    if len({names.get(model, model) for model in outcomes}) < len(outcomes):
        raise UserError("two models of the report have the same name: give them different ones")
    baseline, chosen = baseline or next(iter(outcomes)), chosen or list(outcomes)[-1]
    for model in (baseline, chosen):
        _known(model, outcomes)
    said = (*notes, *_without_a_class(table))
    hash_, settings = table["protocol_hash"][0].as_py(), _settings(table)
    each = [(float(e), attack) for e in protocol["eps"] for attack in protocol["attacks"]] if protocol.get("independent") else []
    alone = {column: metrics.alone(table, [column[1]], column[0], skips) for column in each}
    told = dict(checks or {}), dict(seeds or {}), said
    return Report(outcomes, protocol, hash_, baseline, chosen, names, settings, *told, alone, prompts, ladder.of(table, protocol, skips))


def _check_finished(model: str, seen: metrics.Outcomes, protocol: Mapping[str, Any]) -> None:
    """Raise UserError unless a model has met every image of every set of the protocol, and of no other."""
    if outside := set(seen) - set(protocol["sets"]):
        raise UserError(f"model {model!r} has records for a set outside protocol {protocol['name']}: {outside.pop()!r}")
    for name, each in protocol["sets"].items():
        n, wanted = len(seen[name].ids) if name in seen else 0, each.get("n")
        if n == 0 or n != (wanted or n):
            raise UserError(f"model {model!r} has {n} of {wanted or 'all'} images of set {name!r}; finish its evaluation")
        attacked = len(seen[name].ids[seen[name].attacked])
        if attacked != each.get("attacked", n):
            raise UserError(f"model {model!r}: {attacked} images of set {name!r} were attacked, not {each['attacked']}")


def _without_a_class(table: pa.Table) -> list[str]:
    """Return a note for every model and set with attacked images whose logits were not finite: how many, and what they count as."""
    rows = table.filter(pc.equal(table["prediction"], NO_CLASS)).select(["model", "dataset", "image_id"]).group_by(["model", "dataset"])
    return [
        f"{row['image_id_count_distinct']} images of {row['dataset']} count as broken because the logits of {row['model']} were not finite "
        "under attack: a broken forward, not a success of the attack."
        for row in rows.aggregate([("image_id", "count_distinct")]).to_pylist()
    ]


def _settings(table: pa.Table) -> dict[str, str]:
    found = table.group_by("attack").aggregate([("attack_config", "distinct")])
    pairs = zip(found["attack"].to_pylist(), found["attack_config_distinct"].to_pylist(), strict=True)
    return {attack: "; ".join(sorted(filter(None, configs))).translate(JSON_SIGNS) for attack, configs in pairs}


def _known(model: str, models: Iterable[str]) -> None:
    models = list(models)
    if model not in models:
        raise UserError(f"there are no records of model {model!r}{did_you_mean(model, models)}; there are: {', '.join(models)}")
