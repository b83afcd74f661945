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

from robustclip import figures, metrics, storage
from robustclip.errors import UserError, did_you_mean
from robustclip.figures import Sheet
from robustclip.records import CLEAN, NO_CLASS


@dataclass(frozen=True)
class Report:
    """Everything that is printed about models under one protocol; `chosen` is compared with `baseline`, if it is another model.

    `protocol` is what the evaluator wrote about it, `names` maps models to what they are called, `settings` attacks to how they were run.
    """

    outcomes: Mapping[str, metrics.Outcomes]
    protocol: Mapping[str, Any]
    protocol_hash: str
    baseline: str
    chosen: str
    names: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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
    def sheets(self) -> list[Sheet]:
        """Return the tables in the order in which they are read."""
        paired = [self._paired()] if self.chosen != self.baseline and not self.grey_box else []
        return [self._main(), *paired, self._stages(), self._per_set()]

    def _main(self) -> Sheet:
        largest, separate = self.eps[-1], self.real if len(self.real) < len(self.classes) else []
        header = ["model", *self.columns.values(), f"above chance, clean / ε={largest:g}"]
        header += [f"{name} {title}" for name in separate for title in ("clean", f"ε={largest:g}")]
        rows = []
        for model in self.outcomes:
            means = {column: self.mean(model, column) for column in self.columns}
            row = [self.name(model), *map(percent, means.values())]
            row.append(f"{100 * means[CLEAN].above_chance:+.1f} / {100 * means[largest].above_chance:+.1f}")
            row += [percent(metrics.accuracy(self.outcomes[model][name], c)) for name in separate for c in (CLEAN, largest)]
            rows.append(tuple(row))
        return Sheet("Clean and robust accuracy", tuple(header), tuple(rows), self._main_caption())

    def _main_caption(self) -> str:
        seen = self.outcomes[self.baseline]
        sizes = {name: len(outcome.ids) for name, outcome in seen.items()}
        attacked = sum(len(outcome.ids[outcome.attacked]) for outcome in seen.values())
        n, effective = sum(sizes.values()), self.mean(self.baseline, CLEAN).effective_n
        weight = "" if round(effective) == n else f" at the effective n of unequal sets, {effective:,.0f}"
        alone = "".join(f"; {name} alone: n = {sizes[name]:,} of them" for name in self.real if len(self.real) < len(sizes))
        over = f"mean over {len(sizes)} sets" if len(sizes) > 1 else f"set {next(iter(sizes))}"
        some = f", {attacked:,} of them attacked" if attacked < n else ""
        return (
            f"{self.grey_box}Accuracy in percent, {over}, n = {n:,} images per model{some}{alone}. Brackets: 95 % Wilson interval{weight}. "
            f"ε in 1/255, {self.protocol.get('norm', 'norm not stated')}; robust = correct when clean and under every attack up to this ε."
            f"{self.reduced} Above chance: mean of accuracy − 1/classes, in points. "
            f"Protocol {self.protocol['name']}, {self.protocol_hash[:12]}."
        )

    def _per_set(self) -> Sheet:
        rows = tuple(
            (
                dataset,
                self.name(model),
                str(k),
                str(len(seen[dataset].ids)),
                *(percent(metrics.accuracy(seen[dataset], c)) for c in self.columns),
            )
            for dataset, k in self.classes.items()
            for model, seen in self.outcomes.items()
        )
        caption = f"Accuracy in percent with its 95 % Wilson interval, n images, worst case over the attacks as above.{self.reduced}"
        return Sheet("Every set", ("set", "model", "classes", "n", *self.columns.values()), rows, caption, left=2)

    def _stages(self) -> Sheet:
        stages = [(e, attack) for e in self.eps for attack in self.protocol["attacks"]]
        rows = tuple((self.name(model), *(percent(self.mean(model, stage)) for stage in stages)) for model in self.outcomes)
        caption = "Cumulative: accuracy in percent under this attack and everything before it (left of it), never under this attack alone."
        return Sheet(
            "Which attack breaks what", ("model", *(f"ε={e:g} after {attack}" for e, attack in stages)), rows, caption + self.reduced
        )

    def _paired(self) -> Sheet:
        a, b = self.name(self.chosen), self.name(self.baseline)
        rows = []
        for column, found in self.differences.items():
            better, worse = (sum(each.p_holm < 0.05 and side * each.difference > 0 for each in found.per_set.values()) for side in (1, -1))
            counts = (str(sum(each.only_a for each in found.per_set.values())), str(sum(each.only_b for each in found.per_set.values())))
            rows.append((self.columns[column], points(found), *counts, f"{better} / {worse} of {len(found.per_set)}", VERDICTS[found.sign]))
        caption = (
            f"Difference of the means in points on the same {self.differences[CLEAN].n:,} images, 95 % interval from a paired bootstrap "
            f"over images ({metrics.DRAWS} draws, within each set). Sets better / worse: exact McNemar at 5 % after Holm over the sets."
        )
        header = ("accuracy", "difference", f"only {a} right", f"only {b} right", "sets better / worse", "verdict")
        return Sheet(f"{a} against {b}", header, tuple(rows), caption)

    def verdict(self, column: metrics.Column) -> str:
        """Return one plain sentence on whether the chosen model is better than the baseline."""
        found, a, b = self.differences[column], self.name(self.chosen), self.name(self.baseline)
        what = {1: "is better than", -1: "is worse than", 0: "is not distinguishable from"}[found.sign]
        few = f"; only {found.discordant} images tell them apart" if found.discordant < metrics.MIN_DISCORDANT else ""
        interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
        return f"{self.columns[column]}: {a} {what} {b} ({100 * found.point:+.1f} points, n={found.n:,}, 95 % {interval}{few})"

    def comparison(self) -> str:
        """Return the paired difference as Markdown: the means, McNemar's test for every set, one sentence per column."""
        if self.grey_box:
            raise UserError(f"protocol {self.protocol['name']}: {self.grey_box}Compare models under a white-box protocol")
        a, b = self.name(self.chosen), self.name(self.baseline)
        rows = tuple(
            (
                name,
                title,
                str(each.n),
                str(each.only_a),
                str(each.only_b),
                f"{100 * each.difference:+.1f}",
                f"{each.p:.2g}",
                f"{each.p_holm:.2g}",
            )
            for name in self.classes
            for column, title in self.columns.items()
            for each in [self.differences[column].per_set[name]]
        )
        header = ("set", "accuracy", "n", f"only {a} right", f"only {b} right", "difference", "p", "p (Holm)")
        caption = "Exact McNemar test on the images that exactly one of the two gets right; Holm: corrected for the number of sets."
        sentences = "".join(f"- {self.verdict(column)}\n" for column in self.columns)
        return f"{self._paired().markdown()}\n{Sheet('Set by set', header, rows, caption, left=2).markdown()}\n{sentences}"

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
            "Robust accuracy is counted per image in the worst case over these attacks. It is an upper bound, not a certificate: "
            "a stronger attack can only lower it.",
            "Intervals cover which images were drawn. They do not cover the luck of training or what would happen on other sets.",
            *(world if rendered else []),
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
        security = {name: {0.0: clean[name], **{e: robust[e][name] for e in self.eps}} for name in clean}
        return {"clean_against_robust": figures.curve(clean, robust), "security_curve": figures.security_curve(security)}

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
        texts = {**tables, "table.tex": self.sheets[0].latex(), "report.html": self.html(drawn)}
        for name, png in drawn.items():
            storage.write_bytes(storage.join(folder, f"{storage.safe_name(name)}.png"), png)
        for name, text in texts.items():
            storage.write_bytes(storage.join(folder, name), text.encode())
        return storage.join(folder, "report.html")


JSON_SIGNS = str.maketrans("", "", '{}"')
VERDICTS = {1: "better", -1: "worse", 0: "not distinguishable"}


def from_records(
    table: pa.Table,
    protocol: Mapping[str, Any],
    models: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    baseline: str | None = None,
    chosen: str | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """Return the report on models (default: all, baseline the first and chosen the last) from records of one protocol.

    Raises UserError when a model is unknown or has not seen every image of every set of the protocol that the others have seen.
    """
    if models:
        for model in models:
            _known(model, pc.unique(table["model"]).to_pylist())
        table = table.filter(pc.is_in(table["model"], pa.array(models)))
    skips = {name: each.get("skips", ()) for name, each in protocol["sets"].items()}
    found = metrics.worst_case(table, protocol["attacks"], protocol["eps"], skips)
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
    return Report(
        outcomes, protocol, table["protocol_hash"][0].as_py(), baseline, chosen, names, _settings(table), (*notes, *_without_a_class(table))
    )


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


def percent(estimate: metrics.Estimate) -> str:
    """Return "81.5 [79.2, 83.6]"."""
    return f"{100 * estimate.mean:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def points(difference: metrics.Difference) -> str:
    """Return "+12.3 [+10.1, +14.4]"."""
    return f"{100 * difference.point:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
