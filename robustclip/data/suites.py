"""Every set of a suite that lies under one folder: found by its usual names, prepared one after the other, none lost by another's fault."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data.card import DatasetCard
from robustclip.data.known import KnownSet, differences
from robustclip.data.marks import prepare_changed
from robustclip.data.naming import suite_names
from robustclip.data.pieces import Mapper, one_by_one
from robustclip.data.preparation import TEMPLATES, Prepared
from robustclip.data.sets import SETS
from robustclip.data.sources import Progress, is_packed, stem_of

BY_COOP = "tapt"  # suites whose name begins so score CoOp's splits
WITHOUT_JSON = ("imagenet", "fgvcaircraft")  # of which CoOp takes the validation images, and the authors' own test


@dataclass(frozen=True)
class Outcome:
    """What became of one set of a suite: `state` is prepared, unchanged, missing or failed; `said` is why, or what differs."""

    known: KnownSet
    state: str
    said: tuple[str, ...] = ()
    card: DatasetCard | None = None
    done: Prepared | None = None


def located(root: str, known: KnownSet, suite: str) -> list[tuple[str, ...]]:
    """Return the copies of a set in `root`, each the paths that it is of: what has a usual name, the likeliest first, then the set's parts.

    Folders come before archives. FARE-13 was scored on webdataset copies, so there these come first.
    """
    files = storage.list_files(root)
    there = [storage.join(root, name) for name in storage.list_folders(root)] + [path for path in files if is_packed(path)]
    usual = [_letters(name) for name in (*known.folders, known.name)]

    def rank(path: str) -> tuple[bool, int]:
        name = _letters(stem_of_any(path))
        return suite.startswith("fare") and not name.startswith("wds"), usual.index(name)

    whole = sorted((path for path in there if _letters(stem_of_any(path)) in usual), key=rank)
    parts = tuple(path for path in files if storage.name_of(path) in known.parts)
    return [(path,) for path in whole] + ([parts] if any(map(is_packed, parts)) else [])


def stem_of_any(path: str) -> str:
    """Return a folder's name, of a model hub's the part that counts, or an archive's without its suffix and the version behind it."""
    path = path.rpartition("--")[2] or path
    return re.sub(r"-r?\d+(\.\d+)+$", "", stem_of(path) if is_packed(path) else storage.name_of(path))


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def prepare_suite(
    out: str,
    root: str,
    suite: str,
    sets: Sequence[str],
    templates: Mapping[str, tuple[str, ...]],
    scored: Mapping[str, str],
    *,
    variant: str = "clean",
    strict: bool = False,
    fresh: bool = False,
    progress: Progress = lambda seen, what: None,
    starting: Callable[[str, str], None] = lambda name, source: None,
    mapper: Mapper = one_by_one,
) -> Iterator[Outcome]:
    """Yield what became of every set of a suite, in order; `starting` hears the name and the source of each that is read.

    `templates` are a suite's prompts of each set, `scored` the split of it that it scores. What has not changed since it was prepared in
    the same way is not read again. A UserError of one set is its outcome.
    """
    for name in sets:
        known = SETS[name]
        places = located(root, known, suite)
        if not places:
            yield Outcome(known, "missing", (f"none of {', '.join(known.folders)} in {root}; its authors publish it at {known.url}",))
            continue
        options = _options(suite, name, variant) | {"templates": templates.get(name) or TEMPLATES, "strict": strict, "fresh": fresh}
        options |= {"starting": partial(starting, name, ", ".join(places[0])), "progress": progress, "mapper": mapper}
        try:
            done = prepare_changed(out, name, places[0], **options)
        except UserError as error:
            yield Outcome(known, "failed", (str(error),))
            continue
        others = (f"{', '.join(path for place in places[1:] for path in place)} left aside",) if len(places) > 1 else ()
        said = (*done.said, *others, *_lacking(suite, known, done.card, scored))
        yield Outcome(known, "unchanged" if done.unchanged else "prepared", said, done.card, done)


def _lacking(suite: str, known: KnownSet, card: DatasetCard, scored: Mapping[str, str]) -> tuple[str, ...]:
    """Return in words what a set lacks of what a suite means: the split that it scores, and classes and images as published."""
    split = scored.get(known.name)
    none = [f"{suite} scores the split {split!r}, which this copy does not have"] if split and split not in card.splits else []
    return (*none, *differences(known, len(card.class_names), card.splits))


def _options(suite: str, name: str, variant: str) -> dict[str, Any]:
    options: dict[str, Any] = {"rename": partial(_renamed, suite, name, variant)}
    if suite.startswith(BY_COOP) and name not in WITHOUT_JSON:
        options["format"] = "coop"
    if suite.startswith(BY_COOP) and name == "fgvcaircraft":
        options["splits"] = {split: f"coop-{split}" for split in ("train", "val", "test")}
    return options


def _renamed(suite: str, name: str, variant: str, keys: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    return suite_names(suite, name, keys, names, variant)
