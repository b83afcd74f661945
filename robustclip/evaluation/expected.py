"""Which published numbers a run is held against: the row that stands for each model, and which column of ours counts the same attacks."""

from collections.abc import Mapping, Sequence
from typing import Any

from robustclip.attacks.ensembles import ENSEMBLES
from robustclip.base.errors import UserError, did_you_mean
from robustclip.evaluation.presets import PRESETS
from robustclip.evaluation.protocols import Resolved
from robustclip.evaluation.published import ROWS, Row
from robustclip.evaluation.rules import Protocol
from robustclip.records.expected import Expected
from robustclip.records.rows import CLEAN
from robustclip.records.survival import Column

BY_NAME = "published"  # every model beside the row that is called as it is
CLIP = "CLIP"
UNNAMED = "ViT-B/32"  # the tower of tables that name none: TeCoA's and TGA-ZSR's
# The attacks that a published column counts, as a preset calls them.
COUNTED = {
    "clean": (),
    "pgd-100": ("pgd-100",),
    "apgd-ce + apgd-dlr": ("apgd-ce-100", "apgd-dlr-100"),
    "apgd-ce + apgd-t": tuple(attack.name for attack in ENSEMBLES["fare"]),
    "autoattack": tuple(attack.name for attack in ENSEMBLES["autoattack"]),
}


def tower(row: Row) -> str:
    """Return the image tower that the source of a row names, such as ViT-L/14; nothing where it names none."""
    last = row.source.rpartition(", ")[2]
    return last if last.startswith("ViT-") else ""


def label(row: Row) -> str:
    """Return what a row is called: its model, with the tower where its source names one, since papers print one name for several."""
    return f"{row.model} {tower(row)}".strip()


def released(row: Row) -> str:
    """Return what open_clip's zoo calls the weights of a row of plain CLIP: OpenAI's."""
    return f"open_clip:{(tower(row) or UNNAMED).replace('/', '-')}-quickgelu/openai"


def has_tower(config: Mapping[str, Any], name: str) -> bool:
    """Return whether the images of a model, told by its open_clip config, go through the tower that a paper calls ViT-L/14 or the like."""
    import open_clip

    meant = (open_clip.get_model_config(name.replace("/", "-")) or {}).get("vision_cfg", {})
    own = config.get("model_cfg", {}).get("vision_cfg", {})
    return all(own.get(key) == meant[key] for key in ("layers", "width", "patch_size"))


def rows_of(preset: str) -> list[Row]:
    """Return the published rows that have a value for a protocol called `preset` or, like its parts, for some of the sets."""
    if preset not in PRESETS:
        return []
    family, sets = preset.partition("-")[0], PRESETS[preset].sets
    rows = [row for row in ROWS if row.preset.partition("-")[0] == family]
    return [row for row in rows if {*row.sets, *row.beside} & {*sets} or PRESETS[row.preset].sets == sets]


def check(words: Sequence[str], preset: str, protocol: Protocol, models: int) -> None:
    """Raise UserError for rows that are not there or not one for each model, and where a run could be held against no number."""
    rows = rows_of(preset)
    if not rows:
        known = [name for name in PRESETS if rows_of(name)]
        raise UserError(f"nothing is published for protocol {preset!r} here: --expect goes with {', '.join(known)}")
    if list(words) != [BY_NAME]:
        if len(words) != models:
            raise UserError(f"--expect names {len(words)} rows for {models} models: give one for each model, in their order")
        for word in words:
            find(word, rows)
    if not any(counted(row, protocol) for row in rows if row.eps):
        raise UserError("none of the published attacks and eps is run: leave --attacks, --eps or --expect out")


def find(word: str, rows: Sequence[Row]) -> str:
    """Return the label of the rows that a word means; raises UserError for none, or for several towers."""
    labels = [*dict.fromkeys(map(label, rows))]
    if word in labels:
        return word
    found = [*dict.fromkeys(label(row) for row in rows if row.model == word)]
    if len(found) > 1:
        raise UserError(f"{word!r} is published for several towers: say which, {' or '.join(map(repr, found))}")
    if not found:
        raise UserError(f"no published row {word!r}{did_you_mean(word, labels)}; there are {', '.join(map(repr, labels))}")
    return found[0]


def choose(words: Sequence[str], preset: str, given: Sequence[str], base: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Return model -> label of its row, for the models `given` by their display names and, of CLIP's row, for their undefended `base`.

    `config` is the base's in open_clip's form: it stands beside the CLIP of its own tower alone. Raises UserError where BY_NAME finds no
    row for any of them.
    """
    rows = rows_of(preset)
    labels = {label(row) for row in rows}
    if list(words) == [BY_NAME]:
        known = {name: name for row in rows for name in (row.model, label(row))}
        known |= {released(row): label(row) for row in rows if row.model == CLIP}
        chosen = {model: find(known[model], rows) for model in given if model in known}
        if not chosen:
            raise UserError(f"no published row is called {' or '.join(map(repr, given))}: name one, --expect {' or '.join(sorted(labels))}")
    else:
        chosen = {model: find(word, rows) for model, word in zip(given, words, strict=True)}
    towers = {tower(row) for row in rows if label(row) in chosen.values()}
    clip = [label(row) for row in rows if row.model == CLIP and tower(row) in towers and has_tower(config, tower(row) or UNNAMED)]
    return chosen if base in chosen or len({*clip}) != 1 else {base: clip[0], **chosen}


def counted(row: Row, protocol: Protocol) -> tuple[Column, tuple[str, ...]] | None:
    """Return the column of ours for a row and the attacks that it counts besides; None where the row's attacks or eps are not run."""
    names = [attack.name for attack in protocol.attacks if attack.name not in protocol.apart]
    wanted = COUNTED[row.attack]
    if not wanted:
        return CLEAN, ()
    if row.eps not in protocol.eps or not {*wanted} <= {*names}:
        return None
    until = names[: 1 + max(names.index(name) for name in wanted)]
    smaller = (f"all at ε < {row.eps:g}",) if row.eps > protocol.eps[0] else ()
    return (row.eps, until[-1]), (*(name for name in until if name not in wanted), *smaller)


def beside(chosen: Mapping[str, str], preset: str, resolved: Resolved) -> tuple[list[Expected], list[str]]:
    """Return the published numbers for each model of `choose`, set by set and as a mean, and a sentence on those with no column of ours."""
    found, left_out = [], []
    for model, wanted in chosen.items():
        for row in (row for row in rows_of(preset) if label(row) == wanted):
            ours = counted(row, resolved.protocol)
            if ours is None:
                left_out.append(f"{wanted} under {row.attack} at ε={row.eps:g}")
            else:
                found += _cells(model, row, *ours, PRESETS[preset], resolved)
    return found, [f"Published, and not run here: {', '.join(left_out)}."] if left_out else []


def _cells(model: str, row: Row, column: Column, besides: tuple[str, ...], preset: Protocol, resolved: Resolved) -> list[Expected]:
    images = {name: len(each.index) for name, each in resolved.sets.items()}
    printed = preset.n if column == CLEAN else preset.attacked or preset.n
    n = {name: min(printed or there, there) for name, there in images.items()}
    values, about = row.sets | row.beside, (model, label(row), row.source)
    cells = [Expected(*about, (name,), column, values[name] / 100, (n[name],), besides) for name in images if name in values]
    mean = row.mean(tuple(images)) if {*images} <= {*row.sets} else row.average if {*images} == {*PRESETS[row.preset].sets} else None
    whole = [] if mean is None or len(images) < 2 else [Expected(*about, tuple(images), column, mean / 100, tuple(n.values()), besides)]
    return cells + whole
