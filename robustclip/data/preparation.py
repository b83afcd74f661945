"""A data set made from sources: every image is decoded once to see that it can be, and kept as the bytes it came in.

Memory holds names only: the bytes are read where they lie, once for the check and once for the shard that they go to. Both are work in
pieces, which a mapper may give to many processes; what it came to is the same.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.locks import alone
from robustclip.data.card import CARD, DatasetCard, load, save, whole
from robustclip.data.collecting import Collected, Image, Skipped, collect
from robustclip.data.formats import recognised
from robustclip.data.formats.base import Asked, Reading
from robustclip.data.index import scan
from robustclip.data.pieces import Mapper, one_by_one
from robustclip.data.sets import SETS as KNOWN
from robustclip.data.shards import Row
from robustclip.data.sources import SPLITS, Progress, Tree, expanded
from robustclip.data.stages import SKIPPED, Stage, stage_of
from robustclip.data.world import SETS as WORLD

TEMPLATES = ("a photo of a {}.",)
LICENCE = "unknown: ask its source"

Rename = Callable[[Sequence[str], Sequence[str]], Sequence[str]]  # keys and names of classes -> other names


@dataclass(frozen=True)
class Prepared:
    """What preparing a set came to: its card, the files that were skipped, whether the very same set was there before.

    `format` is what the sources were read as ("": they were not), `said` what the reader has to say of them, `called` the keys and the
    names of its classes before they were given others.
    """

    card: DatasetCard
    skipped: tuple[Skipped, ...]
    unchanged: bool
    format: str = ""
    said: tuple[str, ...] = ()
    called: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


def check_templates(templates: Sequence[str]) -> None:
    """Raise UserError for a template that does not have one place for the class name."""
    for template in templates:
        if template.count("{}") != 1 or "{" in template.replace("{}", "") or "}" in template.replace("{}", ""):
            raise UserError(f"the template {template!r} must hold one {{}}, where the class name goes, and no other brace")


def prepare(
    out: str,
    name: str,
    sources: Sequence[str],
    *,
    split: str | None = None,
    strict: bool = False,
    templates: Sequence[str] | None = None,
    licence: str | None = None,
    fresh: bool = False,
    format: str | None = None,
    rename: Rename | None = None,
    splits: Mapping[str, str] | None = None,
    progress: Progress = lambda seen, what: None,
    mapper: Mapper = one_by_one,
) -> Prepared:
    """Write <out>/data/<name> from the sources and return what it came to; on any error nothing of it remains.

    `strict` refuses files that cannot be read instead of skipping them; `fresh` replaces a set of that name whose content differs. `format`
    is one of `robustclip.data.formats` where files could be read as several. `templates` and `licence` default to what the set brings and
    what is known of it. `rename` gives classes other names, `splits` splits. What is stopped in the middle goes on from there when the same
    is asked again of the same files.
    """
    folder = storage.join(out, "data", storage.safe_name(name))
    if name in WORLD:
        raise UserError(f"{name!r} is an embedded set; choose another --name")
    check_templates(templates or ())
    split = split and SPLITS.get(split, split)
    known = KNOWN.get(name)
    places = expanded(sources)
    with ExitStack() as held:
        held.enter_context(alone(folder))
        before = load(folder) if storage.exists(storage.join(folder, CARD)) and not fresh else None
        unharmed = before is not None and whole(before)
        decides = [split, format, sorted((splits or {}).items())]
        stage = held.enter_context(stage_of(folder, places, decides, not unharmed, mapper, progress))
        reading = recognised(Tree(places, stage.spool, progress), known.asked(split) if known else Asked(split), format)
        called = (reading.keys, reading.names)
        if rename:
            reading = replace(reading, names=tuple(rename(reading.keys, reading.names)))
        check_templates(reading.templates)
        found = collect(reading, stage.check, progress)
        _check(found, sources, strict)
        found.rows = {(splits or {}).get(split, split): rows for split, rows in found.rows.items()}
        facts = {
            "name": name,
            "templates": tuple(templates or reading.templates or TEMPLATES),
            "licence": licence or (known.licence if known else LICENCE),
        }
        card = _write(stage, sources, reading, found, facts)
        stage.tidy(card)
        for each in card.shards:
            scan(stage.folder, card, each)  # makes the index of its rows, which lies beside them from now on
        if before is not None and replace(before, licence=card.licence) != card:
            raise UserError(
                f"{folder} holds another set of this name; nothing was changed; choose another --name or replace it with --fresh"
            )
    return Prepared(load(folder), tuple(found.skipped), unharmed, reading.format, tuple(reading.said), called)


def _check(found: Collected, sources: Sequence[str], strict: bool) -> None:
    if strict and found.skipped:
        first = found.skipped[0]
        raise UserError(
            f"{len(found.skipped)} of {found.seen} files cannot be read, first {first.id}: {first.reason}; "
            "nothing was written; mend them or leave --strict out"
        )
    if not any(found.rows.values()):
        first_ = f", first {found.skipped[0].id}: {found.skipped[0].reason}" if found.skipped else ""
        where = ", ".join(map(storage.resolve, sources))
        raise UserError(f"no readable image in {where}; expected {{class}}/image or {{split}}/{{class}}/image or another layout{first_}")


def _write(stage: Stage, sources: Sequence[str], reading: Reading, found: Collected, facts: Mapping[str, Any]) -> DatasetCard:
    shapes = {row.shape for rows in found.rows.values() for row in rows.values()}
    side = next(iter(shapes)) if len(shapes) == 1 else (0, 1)
    splits = {split: rows for split, rows in sorted(found.rows.items()) if rows}
    images = {split: [Row(id, row.label, Image(id, row.source, row.crc)) for id, row in rows.items()] for split, rows in splits.items()}
    card = DatasetCard(
        class_names=reading.names,
        splits={split: len(rows) for split, rows in splits.items()},
        native_size=side[0] if side[0] == side[1] else None,
        source=", ".join(storage.name_of(storage.resolve(source)) for source in sources),
        shards=stage.write(images),
        skipped={split: sum(skip.split == split for skip in found.skipped) for split in sorted({skip.split for skip in found.skipped})},
        **facts,
    )
    if found.skipped:
        skipped = sorted((skip.id, skip.reason) for skip in found.skipped)
        storage.write_json(storage.join(stage.folder, SKIPPED), [{"id": key, "reason": reason} for key, reason in skipped])
    save(card, stage.folder)
    return card
