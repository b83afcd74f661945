"""The ledger as a page: a table a paper, a row a claim, a column a world."""

from collections.abc import Mapping, Sequence

from robustclip.base import storage
from robustclip.base.errors import UserError, did_you_mean
from robustclip.records.metrics import MIN_DISCORDANT
from robustclip.reproduction import ledger, worlds
from robustclip.reproduction.ledger import Claim, Paper, Result
from robustclip.reproduction.rules import LEAST, REFUTED, SHOWN, UNDECIDED
from robustclip.reproduction.worlds import World

PAGE, FOLDER = "claims.md", "docs"
WORLDS = ("rendered", "photographs", "clip")  # in this order
NOT_MEASURED = "not measured"
DECIDES = "lies on the side of its rule,\n  and so does every training seed by itself"
HEAD = f"""# The papers' claims, and what shows here

<!-- written by `robustclip reproduce` from claims/*.toml: change those -->

Every row is a claim of a paper in our words, with a rule that was fixed before it was measured for this page.

- **{SHOWN}**: the 95 % interval of the statistic {DECIDES}. **{REFUTED}**: both lie on the other side.
- **{UNDECIDED}**: anything else; also fewer than {LEAST} images, fewer than {MIN_DISCORDANT} images that decide on which side of 0 it
  lies, and a model that failed a check or met none.
- Of several statistics each must show the claim, and one can refute it.
- A direction is held to 0, a size to half of what is printed, a loss that a paper accepts to twice of it, or to 5 points where it says
  "kept" or "as well". A term is an accuracy in points, of a model in a column; what both are in a world is said below the tables.
  A set `among:OTHER:SET` is SET [among the class names of OTHER too](data.md#among-more-names).

`robustclip reproduce --paper tecoa --world rendered` trains and attacks what is missing and writes the verdicts; `--plan` says what that
would take. No verdict is written by hand: its numbers stand beside it, and a test judges them again. Intervals are over images
([what they cover](honest.md#what-an-interval-covers)). Many of these comparisons were seen before, in [answers](answers.md): no rule was
fixed blind, which is why its number follows from what is printed alone.
"""


def papers(folder: str) -> dict[str, Paper]:
    """Return the papers of a ledger's folder by name."""
    found = [ledger.read(path) for path in sorted(storage.list_files(folder, ".toml"))]
    return {paper.name: paper for paper in found}


def named(folder: str, name: str) -> Paper:
    """Return a paper by name; raises UserError with a suggestion for an unknown one."""
    known = [storage.name_of(path).removesuffix(".toml") for path in storage.list_files(folder, ".toml")]
    if name not in known:
        raise UserError(f"no paper {name!r}{did_you_mean(name, known)} in {folder}; there are {', '.join(sorted(known)) or 'none'}")
    return ledger.read(storage.join(folder, f"{name}.toml"))


def page(folder: str) -> str:
    """Return the page of a ledger's folder."""
    every = {name: worlds.read(folder, name) for name in WORLDS}
    parts = [HEAD, *(_table(paper, every) for paper in papers(folder).values()), *(_world(world) for world in every.values())]
    return "\n".join(parts)


def write(folder: str) -> str:
    """Write the page of a ledger's folder into `docs` beside it, and return where."""
    path = storage.join(storage.parent_of(folder), FOLDER, PAGE)
    storage.write_bytes(path, page(folder).encode())
    return path


def _table(paper: Paper, every: Mapping[str, World]) -> str:
    head = ["claim", "there", "as printed", "shown if", *(world.title for world in every.values())]
    lines = [f"## {paper.title}", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for claim in paper.claims:
        cells = [f"**{claim.name}**: {claim.says}", claim.source, claim.published, _rules(claim)]
        lines.append(f"| {' | '.join([*cells, *(_cell(paper, claim, world) for world in every.values())])} |")
    return "\n".join([*lines, ""])


def _rules(claim: Claim) -> str:
    said = [f"{part}{'' if part.published is None else f' (printed {part.published:+g})'}" for part in claim.parts]
    return f"{claim.study}: {'; '.join(said)}" if said else "–"


def standing(paper: Paper, claim: Claim, world: World) -> Result | None:
    """Return a claim's result in a world, None where there is none, or one of another rule, study or base model than there is now."""
    found = paper.results.get(world.name, {}).get(claim.name)
    if not found or world.why_not(claim) or found.rule != world.fingerprint(claim):
        return None
    here = found.base and world.weights(world.studies[claim.study])
    return found if not here or here == found.base else None


def _cell(paper: Paper, claim: Claim, world: World) -> str:
    if why := world.why_not(claim):
        below = world.not_yet or (claim.study in world.studies and world.studies[claim.study].not_yet)
        return f"not yet: {why}" if claim.not_yet or not below else "not yet"
    found = standing(paper, claim, world)
    if found is None:
        return NOT_MEASURED
    numbers = "; ".join(f"{part.estimate:+.1f} [{part.low:+.1f}, {part.high:+.1f}]" for part in found.parts)
    seeds = f", seeds {' '.join(map(str, found.seeds))}" if found.seeds else ""
    why = f" ({found.why})" if found.why else ""
    return f"**{found.verdict}**{why}: {numbers}, n = {found.parts[0].n}{seeds}, {found.protocol}, {found.date}"


def _world(world: World) -> str:
    fixed = ", ".join(f"{path} {_said(value) if isinstance(value, str) else value}" for path, value in world.fixed.items())
    about = f"{world.about} Every training has {fixed}, where a trial says nothing else." if fixed else world.about
    lines = [f"## The {world.title}", "", about or world.not_yet, ""]
    lines += [f"- {said}" for study in world.studies.values() if (said := _study(world, study))]
    return "\n".join([*lines, ""]) if not world.not_yet else "\n".join(lines[:3]) + "\n"


def _study(world: World, study: worlds.Study) -> str:
    if study.not_yet:
        return f"**{study.name}**: not yet, {study.not_yet}"
    changes = {name: getattr(study, name) for name in ("sets", "n", "eps", "attacks", "independent") if getattr(study, name)}
    told = "; ".join(f"{name} {_said(value)}" for name, value in changes.items())
    alone = {role: "the checkpoint alone of " if role in study.checkpoints else "" for role in study.roles}
    roles = [f"{role} is {alone[role]}{_said(what)}" for role, what in {**study.sampled, **study.models}.items()]
    source = f"`{world.sweep(study)}`" if study.space else "recipes"
    columns = [f"{column} is {_said(spec)}" for column, spec in study.columns.items()]
    protocol = f"protocol `{study.protocol}`{f' with {told}' if told else ''}"
    return f"**{study.name}**: {protocol}; models of {source}: {'; '.join(roles)}; columns: {', '.join(columns)}"


def _said(value: object) -> str:
    if isinstance(value, worlds.Bound):
        return f"{_said(value.of)} on {_said(value.set)}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key.rpartition('.')[2]} {each}" for key, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(_said, value))
    if isinstance(value, str):
        return "undefended" if value == f"{{{worlds.BASE}}}" else f"`{value}`"
    return f"ε = {value:g}" if isinstance(value, float) else str(value)
