"""The ledger: a TOML file a paper, the claims written by hand above a line, what was measured of them written by the command below it."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from robustclip.base import storage
from robustclip.base.errors import UserError, did_you_mean
from robustclip.base.locks import alone
from robustclip.reproduction.rules import Measured, Rule

MARK = "# --- results: written by `robustclip reproduce`, by the rules above, never by hand ---\n"
SIDES = ("above", "below")


@dataclass(frozen=True)
class Part:
    """One statistic with its rule: `terms` weigh accuracies in points, each of a role in a column, "tecoa robust"; `published` likewise."""

    terms: Mapping[str, float]
    rule: Rule
    published: float | None = None

    def __str__(self) -> str:
        """Return it as one reads it: "tecoa robust - clip robust > 15.8"."""
        weighed = [(weight, term if abs(weight) == 1 else f"{abs(weight):g} {term}") for term, weight in self.terms.items()]
        said = " ".join(f"{'-' if weight < 0 else '+'} {term}" for weight, term in weighed)
        return f"{said.removeprefix('+ ')} {'>' if self.rule.side == 'above' else '<'} {self.rule.than:g}"

    @property
    def roles(self) -> set[str]:
        return {term.rpartition(" ")[0] for term in self.terms}

    @property
    def columns(self) -> set[str]:
        return {term.rpartition(" ")[2] for term in self.terms}


@dataclass(frozen=True)
class Result:
    """What was found of a claim in a world: the verdict, why it is undecided, by which rule, under which protocol, when, of which seeds.

    `base` is the identity of the model that it was found of, "" in results from before it was kept.
    """

    verdict: str
    why: str
    rule: str
    protocol: str
    date: str
    seeds: tuple[int, ...]
    parts: tuple[Measured, ...]
    base: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim of a paper in our words, where it stands there, what is printed, and how it is decided: the `parts` of a world's `study`.

    `not_yet` says why nothing can decide it so far; then there are no parts.
    """

    name: str
    says: str
    source: str
    published: str
    study: str = ""
    parts: tuple[Part, ...] = ()
    not_yet: str = ""


@dataclass(frozen=True)
class Paper:
    """A file of the ledger: its `by_hand` text, the claims that it says, and results by world and claim."""

    path: str
    title: str
    by_hand: str
    claims: tuple[Claim, ...]
    results: Mapping[str, Mapping[str, Result]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return storage.name_of(self.path).removesuffix(".toml")

    def with_results(self, world: str, found: Mapping[str, Result]) -> "Paper":
        """Return the paper with these results in a world's column; those of the same numbers as before keep their date."""
        before = self.results.get(world, {})
        dated = {name: replace(each, date=before[name].date) for name, each in found.items() if name in before}
        same = {name: each for name, each in dated.items() if replace(each, base=before[name].base) == before[name]}
        return replace(self, results={**self.results, world: {**before, **found, **same}})

    def text(self) -> str:
        """Return the file."""
        return f"{self.by_hand}{MARK}{''.join(_block(world, name, each) for world, name, each in self._ordered())}"

    def _ordered(self) -> list[tuple[str, str, Result]]:
        order = [claim.name for claim in self.claims]
        return [(world, name, each[name]) for world, each in sorted(self.results.items()) for name in order if name in each]

    def write(self) -> None:
        """Write the file."""
        storage.write_bytes(self.path, self.text().encode())


def add(path: str, world: str, found: Mapping[str, Result]) -> None:
    """Write results into a world's column of a paper's file as it is now, whatever was written into it since it was read."""
    with alone(path):
        read(path).with_results(world, found).write()


def read(path: str) -> Paper:
    """Return a paper's file; raises UserError naming the place of what it does not understand."""
    text = storage.read_bytes(path).decode()
    by_hand, mark, _ = text.partition(MARK)
    data = parsed(text, path)
    check_keys(data, ("paper", "claims", "results"), path)
    claims = tuple(_claim(name, each, path) for name, each in data.get("claims", {}).items())
    known = [claim.name for claim in claims]
    results: dict[str, dict[str, Result]] = {}
    for world, each in data.get("results", {}).items():
        for name, result in each.items():
            if name not in known:
                raise UserError(f"{path}: results.{world}.{name} is of no claim{did_you_mean(name, known)}: delete that block")
            parts = tuple(Measured(**{**part, "seeds": tuple(part["seeds"])}) for part in result["parts"])
            results.setdefault(world, {})[name] = Result(**{**result, "seeds": tuple(result["seeds"]), "parts": parts})
    return Paper(path, data.get("paper", ""), by_hand if mark else f"{text.rstrip()}\n\n", claims, results)


def parsed(text: str, path: str) -> dict[str, Any]:
    """Return the values of a TOML text; raises UserError naming the file where it is none."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML ({error})") from error


def check_keys(data: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise UserError naming a key that is none of the known ones."""
    for name in data:
        if name not in known:
            raise UserError(f"{where}: unknown key {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")


def _claim(name: str, data: Mapping[str, Any], path: str) -> Claim:
    where = f"{path}: claims.{name}"
    check_keys(data, tuple(each.name for each in fields(Claim) if each.name != "name"), where)
    if missing := [key for key in ("says", "source", "published") if not data.get(key)]:
        raise UserError(f"{where}: {missing[0]} is missing")
    claim = Claim(name, **{**data, "parts": tuple(_part(each, where) for each in data.get("parts", ()))})
    if bool(claim.not_yet) == bool(claim.study and claim.parts):
        raise UserError(f"{where}: give a study and its parts, or not_yet and no part")
    return claim


def _part(data: Mapping[str, Any], where: str) -> Part:
    check_keys(data, ("terms", "published", *SIDES), where)
    sides = [side for side in SIDES if side in data]
    if len(sides) != 1 or not data.get("terms"):
        raise UserError(f"{where}: a part has terms and one rule, above = POINTS or below = POINTS")
    terms = {term: float(weight) for term, weight in data["terms"].items()}
    for term in terms:
        if len(term.split()) != 2:
            raise UserError(f"{where}: the term {term!r} is not 'ROLE COLUMN'")
    return Part(terms, Rule(sides[0], float(data[sides[0]])), data.get("published"))  # type: ignore[arg-type]


def _block(world: str, name: str, result: Result) -> str:
    """Return a result as TOML, whose strings and numbers are JSON's."""
    said = {key: value for key, value in asdict(result).items() if key != "parts" and (value or key != "base")}
    lines = [f"\n[results.{world}.{name}]", *(f"{key} = {_json(value)}" for key, value in said.items()), "parts = ["]
    lines += [f"    {{ {', '.join(f'{key} = {_json(value)}' for key, value in asdict(part).items())} }}," for part in result.parts]
    return "\n".join([*lines, "]", ""])


def _json(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
