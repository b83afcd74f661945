"""Everything a report says about some models under one protocol, as values: accuracies, differences, and who may be ranked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from robustclip.base.errors import UserError, did_you_mean
from robustclip.records import findings, ladder, metrics, shift, survival
from robustclip.records.calibration import Calibration, calibration
from robustclip.records.expected import Expected
from robustclip.records.prompts import Found
from robustclip.records.rows import CLEAN, NO_CLASS

MARK = "✗"
FEW = 10  # survivors that are named


@dataclass(frozen=True)
class Report:
    """Everything that is printed about models under one protocol; `chosen` is compared with `baseline`, if it is another model.

    `protocol` is what the evaluator wrote about it, `names` maps models to what they are called, `settings` attacks to how they were run,
    `checks` models to what the checks found; without findings a model is not ranked. `seeds` names the groups of models that differ in
    their training seed alone. `alone` holds what became of the images under each attack by itself, where attacks were independent,
    `prompts` what text attacks made of the class prompts, `levels` what every attacker level left, `expected` published numbers, `shifts`
    what attacks left that saw other texts.
    """

    outcomes: Mapping[str, survival.Outcomes]
    protocol: Mapping[str, Any]
    protocol_hash: str
    baseline: str
    chosen: str
    names: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, Sequence[findings.Finding]] = field(default_factory=dict)
    seeds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    alone: Mapping[tuple[float, str], Mapping[str, survival.Outcomes]] = field(default_factory=dict)
    prompts: Sequence[Found] = ()
    levels: Sequence[ladder.Rung] = ()
    expected: Sequence[Expected] = ()
    shifts: Sequence[shift.Shift] = ()

    @cached_property
    def eps(self) -> tuple[float, ...]:
        """Return the radii in 1/255, ascending."""
        return tuple(sorted(float(e) for e in self.protocol["eps"]))

    @cached_property
    def columns(self) -> dict[survival.Column, str]:
        """Return the columns of the main table with their titles."""
        titles: dict[survival.Column, str] = {CLEAN: "clean"}
        if self.protocol.get("attacked"):
            titles[survival.CLEAN_ATTACKED] = "clean, attacked images"
        return titles | {e: f"robust ε={e:g}" for e in self.eps}

    @cached_property
    def classes(self) -> dict[str, int]:
        """Return set -> number of classes, in the protocol's order."""
        return survival.classes_of(self.protocol)

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

    def mean(self, model: str, column: survival.Column) -> metrics.Macro:
        """Return the macro mean of a model over all sets of the protocol."""
        return metrics.macro(self.outcomes[model], column, self.classes)

    @cached_property
    def differences(self) -> dict[survival.Column, metrics.Difference]:
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
    def counted(self) -> list[str]:
        """Return the attacks of the worst case: all but those whose numbers stand apart."""
        return [attack for attack in self.protocol["attacks"] if attack not in self.protocol.get("apart", ())]

    @cached_property
    def at_chance(self) -> list[str]:
        """Return the sets on which some model's clean accuracy cannot be told from guessing."""
        return metrics.at_chance(self.outcomes, self.classes)

    @cached_property
    def calibrations(self) -> dict[str, dict[str, Calibration | None]]:
        """Return model -> title -> its calibration, clean and under every attack: on its own where it was run so, else after all before."""
        stages = [(e, attack) for e in self.eps for attack in self.counted]
        found: dict[str, dict[str, Calibration | None]] = {
            model: {CLEAN: calibration(seen, CLEAN)} for model, seen in self.outcomes.items()
        }
        for model, under in found.items():
            under |= {f"ε={e:g}, {attack}": calibration(each[model], (e, attack)) for (e, attack), each in self.alone.items()}
            under |= (
                {} if self.alone else {f"ε={e:g} after {attack}": calibration(self.outcomes[model], (e, attack)) for e, attack in stages}
            )
        return found

    def verdict(self, column: survival.Column) -> str:
        """Return one plain sentence on whether the chosen model is better than the baseline."""
        found, a, b = self.differences[column], self.name(self.chosen), self.name(self.baseline)
        what = {1: "is better than", -1: "is worse than", 0: "is not distinguishable from"}[found.sign]
        few = f"; only {found.discordant} images tell them apart" if found.discordant < metrics.MIN_DISCORDANT else ""
        interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
        return f"{self.columns[column]}: {a} {what} {b} ({100 * found.point:+.1f} points, n={found.n:,}, 95 % {interval}{few})"

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


APART = "Shown and in no worst case (the label is known to the attacker, a prompt may name another class, or the attack saw other prompts)"
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
    expected: Sequence[Expected] = (),
) -> Report:
    """Return the report on models (default: all, baseline the first and chosen the last) from records of one protocol.

    Raises UserError when a model is unknown or has not seen every image of every set of the protocol that the others have seen.
    """
    if models:
        for model in models:
            _known(model, pc.unique(table["model"]).to_pylist())
        table = table.filter(pc.is_in(table["model"], pa.array(models)))
    skips = survival.skips_of(protocol)
    found = survival.outcomes_of(table, protocol)
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
    alone = {column: survival.alone(table, [column[1]], column[0], skips) for column in each}
    told = dict(checks or {}), dict(seeds or {}), said
    rungs = ladder.of(table, protocol, skips)
    shifts = shift.of(table, protocol, skips) if protocol.get("independent") else ()
    return Report(outcomes, protocol, hash_, baseline, chosen, names, settings, *told, alone, prompts, rungs, expected, shifts)


def _check_finished(model: str, seen: survival.Outcomes, protocol: Mapping[str, Any]) -> None:
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
