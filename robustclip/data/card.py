"""The card of a data set: dataset.json beside its shards, which says what the set is."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from robustclip.base import storage
from robustclip.base.errors import UserError

SCHEMA_VERSION = 1
CARD = "dataset.json"


@dataclass(frozen=True)
class DatasetCard:
    """What a data set is: splits are row counts, native_size is the pixel side if every image is a square of it, shards name the files.

    `render_seed` is the seed of an embedded set, None for a prepared one. `folder` is where the card was found; it is not written.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    splits: dict[str, int]
    native_size: int | None
    licence: str
    source: str
    shards: dict[str, tuple[dict, ...]]
    skipped: dict[str, int] = field(default_factory=dict)
    render_seed: int | None = None
    schema_version: int = SCHEMA_VERSION
    folder: str = field(default="", compare=False)


def save(card: DatasetCard, folder: str) -> None:
    """Write <folder>/dataset.json."""
    facts = {key: value for key, value in asdict(card).items() if key != "folder"}
    storage.write_json(storage.join(folder, CARD), facts)


def load(folder: str) -> DatasetCard:
    """Return the card of the set in `folder`; a missing set, a newer version or a missing key is a UserError."""
    path = storage.join(folder, CARD)
    if not storage.exists(path):
        raise UserError(f"no data set in {folder}: it has no {CARD}")
    facts = storage.read_json(path)
    if not isinstance(facts, dict):
        raise UserError(f"{path}: not a data set card; prepare the set again")
    version = facts.get("schema_version", 0)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version {version} is newer than this program reads ({SCHEMA_VERSION}); update robustclip")
    for key in ("name", "class_names", "templates", "splits", "native_size", "licence", "source", "shards"):
        if key not in facts:
            raise UserError(f"{path}: the key {key!r} is missing; prepare the set again")
    known = {f.name for f in fields(DatasetCard)}  # keys of a later minor version are left alone
    card: dict[str, Any] = {key: value for key, value in facts.items() if key in known}
    card |= {key: tuple(facts[key]) for key in ("class_names", "templates")}
    card["shards"] = {split: tuple(shards) for split, shards in facts["shards"].items()}
    return DatasetCard(**{**card, "folder": folder})


def whole(card: DatasetCard) -> bool:
    """Return whether every shard is there with the bytes the card says."""
    shards = [(storage.join(card.folder, shard["file"]), shard["sha256"]) for shards in card.shards.values() for shard in shards]
    return all(storage.exists(path) and storage.sha256_file(path) == sha256 for path, sha256 in shards)
