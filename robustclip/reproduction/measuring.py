"""From records to a verdict: a claim's statistics over the images that all its models met, each by its rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import pyarrow as pa

from robustclip.base.errors import UserError
from robustclip.evaluation.protocols import Resolved
from robustclip.records import survival
from robustclip.records.contrasts import resampled
from robustclip.records.findings import Finding, failed, reasons
from robustclip.records.metrics import check_same_images
from robustclip.records.survival import CLEAN_ATTACKED, Column, Outcomes
from robustclip.reproduction.ledger import Claim, Part, Result
from robustclip.reproduction.rules import UNDECIDED, Measured, judge, together
from robustclip.reproduction.worlds import CLEAN, Bound, Mean, Spec

POINTS = 2  # decimals that the ledger keeps; rules are applied to what it keeps

Found = tuple[Mapping[str, Outcomes], Column]  # a column: outcomes by model, and where in them its accuracy stands


@dataclass(frozen=True)
class Evaluated:
    """A study's records: who stands for every role, a name a seed as records call them; accuracies by column; what the checks found."""

    resolved: Resolved
    runs: Mapping[str, Sequence[str]]
    columns: Mapping[str, Found]
    checks: Mapping[str, Sequence[Finding]]

    def of(self, term: str) -> list[tuple[Outcomes, Column]]:
        """Return the outcomes of a term, "ROLE COLUMN", a run a seed, and where in them its accuracy stands."""
        role, _, column = term.rpartition(" ")
        found, where = self.columns[column]
        return [(found[name], where) for name in self.runs[role]]


def columns_of(table: pa.Table, resolved: Resolved, specs: Mapping[str, Spec]) -> dict[str, Found]:
    """Return every column; of one set alone as that of the set whose images it shows, so that images seen twice are one image.

    Raises UserError for a column that the protocol does not have.
    """
    whole = survival.outcomes_of(table, resolved.describe())

    def found(name: str, spec: Mean) -> Found:
        if not isinstance(spec, str):
            return whole, (float(spec[0]), spec[1]) if isinstance(spec, tuple) else float(spec)
        protocol = resolved.protocol
        attacks = [attack.name for attack in protocol.attacks if fnmatchcase(attack.name, spec)]
        if not attacks or not protocol.independent or len(protocol.eps) != 1:
            raise UserError(
                f"column {name!r}: {spec!r} alone needs independent attacks of such names at one eps; protocol {protocol.name} has "
                f"{', '.join(attack.name for attack in protocol.attacks)} at {protocol.eps}"
            )
        return survival.alone(table, attacks, protocol.eps[0], resolved.skips), protocol.eps[0]

    columns: dict[str, Found] = {CLEAN: (whole, CLEAN_ATTACKED)}
    for name, spec in specs.items():
        if isinstance(spec, Bound):
            outcomes, where = columns[CLEAN] if spec.of == CLEAN else found(name, spec.of)
            shown = resolved.sets[spec.set].card.name
            columns[name] = {model: {shown: each[spec.set]} for model, each in outcomes.items()}, where
        else:
            columns[name] = found(name, spec)
    return columns


def result(claim: Claim, fingerprint: str, evaluated: Evaluated, seeds: Sequence[int], today: str, base: str = "") -> Result:
    """Return what records say of a claim, by its rules; undecided where a check of one of its models failed hard, or none was made.

    `base` is the identity of the undefended model.
    """
    parts = [measured(part, evaluated) for part in claim.parts]
    judged = [judge(part.rule, found) for part, found in zip(claim.parts, parts, strict=True)]
    verdict, why = together([said for said, _ in judged]), "; ".join(dict.fromkeys(reason for _, reason in judged if reason))
    roles = sorted(set().union(*(part.roles for part in claim.parts)))
    if faults := doubts({role: evaluated.runs[role] for role in roles}, evaluated.checks):
        verdict, why = UNDECIDED, faults
    protocol = f"{evaluated.resolved.protocol.name} {evaluated.resolved.hash}"
    return Result(verdict, why if verdict == UNDECIDED else "", fingerprint, protocol, today, tuple(seeds), tuple(parts), base)


def doubts(runs: Mapping[str, Sequence[str]], checks: Mapping[str, Sequence[Finding]]) -> str:
    """Return which roles have a run that was not checked or failed a check hard, and which check; "" where none."""
    said = []
    for role, names in runs.items():
        for name in names:
            hard = failed(checks.get(name, ()), "hard")
            if not checks.get(name):
                said.append(f"{role} is not checked")
            elif hard:
                said.append(f"{role} failed check {reasons(hard)}")
    return "; ".join(dict.fromkeys(said))


def measured(part: Part, evaluated: Evaluated) -> Measured:
    """Return a statistic in points: the macro mean over sets of a weighted sum of each image's accuracies, seeds averaged.

    Raises UserError where its models met, or its columns are of, other images.
    """
    terms = {term: evaluated.of(term) for term in part.terms}
    _check_same_sets({term: sorted(runs[0][0]) for term, runs in terms.items()})
    check_same_images({f"{term}, run {i + 1}": outcomes for term, runs in terms.items() for i, (outcomes, _) in enumerate(runs)})
    flags = {
        term: [{name: each.flags(column).astype(float) for name, each in outcomes.items()} for outcomes, column in runs]
        for term, runs in terms.items()
    }
    sets = sorted(next(iter(flags.values()))[0])
    values = {
        name: sum(weight * np.mean([run[name] for run in flags[term]], axis=0) for term, weight in part.terms.items()) for name in sets
    }
    found = resampled(values)
    deciding = sum(int((~np.isclose(each, 0)).sum()) for each in values.values())
    count = max(len(runs) for runs in flags.values())
    alone = [
        np.mean(
            [
                np.mean(sum(weight * flags[term][i if len(flags[term]) > 1 else 0][name] for term, weight in part.terms.items()))
                for name in sets
            ]
        )
        for i in range(count)
    ]
    estimate, low, high, *seeds = (round(100 * float(value), POINTS) for value in (found.mean, found.low, found.high, *alone))
    return Measured(estimate, low, high, found.n, deciding, tuple(seeds))


def _check_same_sets(sets: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError unless all terms, given with the sets whose images they are of, are of the same."""
    first, *_ = sets
    for term, each in sets.items():
        if each != sets[first]:
            raise UserError(
                f"no comparison: {first!r} is of images of {', '.join(sets[first])} and {term!r} of {', '.join(each)}; give all columns of "
                "a part sets that show the same images, such as SET and among:OTHER:SET, or none of them a set"
            )
