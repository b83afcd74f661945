"""What a set was made of, kept beside it, so that the same is not read again."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from robustclip.base import storage
from robustclip.data.card import CARD, DatasetCard, load
from robustclip.data.preparation import Prepared, Rename, prepare
from robustclip.data.sources import expanded, fingerprint

MARK = "prepared.json"
DECIDE = ("split", "format", "strict", "templates", "splits")  # of the options of `prepare`, beside `rename`, which is asked again


def prepare_changed(
    out: str, name: str, sources: Sequence[str], *, starting: Callable[[], None] = lambda: None, fresh: bool = False, **options: Any
) -> Prepared:
    """Return what `prepare` comes to; a set that was made in the same way of the same files is there and they are not read again.

    The same are files of the same names, sizes and times, of places of the same names. `starting` is called before they are read.
    """
    decides = json.dumps([options.get(each) or None for each in DECIDE])
    made_of = [fingerprint(place, [storage.name_of(place), decides]) for place in expanded(sources)]
    folder = storage.join(out, "data", storage.safe_name(name))
    if not fresh and (card := _unchanged(folder, made_of, options.get("rename"))):
        return Prepared(card, (), True)
    starting()
    done = prepare(out, name, sources, fresh=fresh, **options)
    storage.write_json(storage.join(folder, MARK), {"sources": made_of, "shards": _stamps(done.card), "called": done.called})
    return done


def _unchanged(folder: str, made_of: list[str], rename: Rename | None) -> DatasetCard | None:
    """Return the set that is there if it was made of the same files and would be given the same names now, which packages also decide."""
    if not (storage.exists(storage.join(folder, MARK)) and storage.exists(storage.join(folder, CARD))):
        return None
    card, known = load(folder), storage.read_json(storage.join(folder, MARK))
    if (known["sources"], known.get("shards")) != (made_of, _stamps(card)):
        return None
    keys, names = known["called"]
    return card if tuple(rename(keys, names) if rename else names) == card.class_names else None


def _stamps(card: DatasetCard) -> dict[str, list[int | None]]:
    """Return the size and the time of change of every shard."""
    files = [shard["file"] for shards in card.shards.values() for shard in shards]
    return {file: list(storage.stamp(storage.join(card.folder, file))) for file in files}
