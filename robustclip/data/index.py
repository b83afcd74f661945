"""Where every row of a split lies; the index of a split of several shards is made once and kept beside them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.seeds import derive_all
from robustclip.data.card import DatasetCard
from robustclip.data.shards import check_columns, opened

ORDERS = ("val", "subset", "evaluation")  # what rows are ordered for by a hash of their ids
FACTS = b"shards"  # where an index says of which files it is


@dataclass(frozen=True, eq=False)
class Index:
    """Where every row of a split lies: n rows as arrays of (file, row_group, row in the group, label, id); `file` counts in `files`.

    `hashes` are int64 [n] hashes of the ids by what rows are ordered for; those that are not there are computed when asked for.
    """

    files: tuple[str, ...]
    file: np.ndarray
    row_group: np.ndarray
    row: np.ndarray
    label: np.ndarray
    id: pa.Array
    class_names: tuple[str, ...]
    hashes: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.label)

    def ids(self, rows: np.ndarray) -> list[str]:
        """Return the ids of rows (positions in the index)."""
        return self.id.take(pa.array(rows)).to_pylist()

    def only(self, rows: np.ndarray) -> "Index":
        """Return the index of some rows, in their order, and of no others."""
        places = {name: getattr(self, name)[rows] for name in ("file", "row_group", "row", "label")}
        return replace(self, **places, id=self.id.take(pa.array(rows)), hashes={})

    def hashed(self, what: str) -> np.ndarray:
        """Return int64 [n] keys that order rows by a hash of their ids, the same for any order of reading."""
        return self.hashes[what] if what in self.hashes else derive_all(what, self.id.to_pylist())


COLUMNS = tuple(each.name for each in fields(Index) if each.name not in ("files", "class_names", "hashes"))


def scan(folder: str, card: DatasetCard, split: str) -> Index:
    """Return the index of a split, read from the id and label columns only; rows that contradict the card are a UserError."""
    if split not in card.shards:
        raise UserError(f"{folder}: the set {card.name} has no split {split!r}; it has {', '.join(card.shards) or 'none'}")
    files = tuple(storage.join(folder, storage.safe_name(shard["file"])) for shard in card.shards[split])
    if not files:
        raise UserError(f"{folder}: the split {split!r} of {card.name} is empty; prepare it again")
    kept, facts = storage.join(folder, f"{storage.safe_name(split)}.index.arrow"), _facts(files, card, split)
    if (found := _kept(kept, facts) if len(files) > 1 else None) is not None:
        _check_labels(files, card, found)
        return _index(files, card, found)
    parts = [_scan_file(path, shard["rows"]) for path, shard in zip(files, card.shards[split], strict=True)]
    columns: dict[str, Any] = {key: np.concatenate([part[key] for part in parts]) for key in ("row_group", "row", "label")}
    columns["file"] = np.repeat(np.arange(len(files), dtype=np.int32), [len(part["label"]) for part in parts])
    columns["id"] = pa.concat_arrays([part["id"] for part in parts])
    _check_labels(files, card, columns)
    if len(files) > 1:
        columns |= {name: derive_all(name, columns["id"].to_pylist()) for name in ORDERS}
        _keep(kept, facts, columns)
    return _index(files, card, columns)


def _index(files: tuple[str, ...], card: DatasetCard, columns: Mapping[str, Any]) -> Index:
    hashes = {name: columns[name] for name in ORDERS if name in columns}
    return Index(files, class_names=card.class_names, hashes=hashes, **{name: columns[name] for name in COLUMNS})


def _scan_file(path: str, rows: int) -> dict[str, Any]:
    with opened(path) as parquet:
        check_columns(path, parquet)
        sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
        table = parquet.read(columns=["id", "label"]).combine_chunks()
    if table.num_rows != rows:
        raise UserError(f"{path}: holds {table.num_rows} rows where dataset.json says {rows}; prepare the set again")
    if table.column("label").null_count or table.column("id").null_count:
        raise UserError(f"{path}: an id or a label is missing (null); prepare the set again")
    return {
        "row_group": np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        "row": np.concatenate([np.arange(size, dtype=np.int32) for size in sizes] or [np.zeros(0, np.int32)]),
        "label": table.column("label").to_numpy().astype(np.int64),
        "id": pa.concat_arrays([pa.array([], pa.large_string()), *table.column("id").cast(pa.large_string()).chunks]),
    }


def _check_labels(files: Sequence[str], card: DatasetCard, columns: Mapping[str, Any]) -> None:
    classes, label = len(card.class_names), columns["label"]
    for at in np.flatnonzero((label < 0) | (label >= classes))[:1]:
        file = columns["file"][at]
        row = at - np.searchsorted(columns["file"], file)
        raise UserError(
            f"{files[file]}: row {row}: label {label[at]} is outside the {classes} classes (0 to {classes - 1}) of dataset.json"
        )


def _facts(files: Sequence[str], card: DatasetCard, split: str) -> bytes:
    """Return what an index holds for: files of these hashes and sizes."""
    shards = [[shard[key] for key in ("file", "sha256", "rows")] for shard in card.shards[split]]
    return json.dumps([shards, storage.sizes(files)]).encode()


def _kept(path: str, facts: bytes) -> dict[str, Any] | None:
    """Return the columns of the index that is kept of these files, None where there is none of just these."""
    if not storage.exists(path):
        return None
    try:
        # A local one is mapped: the processes of a machine share its memory.
        table = pa.ipc.open_file(pa.memory_map(path) if storage.is_local(path) else storage.read_bytes(path)).read_all()
    except (OSError, pa.ArrowException):
        return None
    if (table.schema.metadata or {}).get(FACTS) != facts:
        return None
    return {name: table.column(name).chunk(0) if name == "id" else table.column(name).chunk(0).to_numpy() for name in table.column_names}


def _keep(path: str, facts: bytes, columns: Mapping[str, Any]) -> None:
    """Write an index beside its shards, where one may."""
    table = pa.table(dict(columns)).replace_schema_metadata({FACTS: facts})
    try:
        with storage.writing(path) as stream, pa.ipc.new_file(stream, table.schema) as writer:
            writer.write_table(table)
    except (OSError, UserError):  # somebody else's set, which may only be read, or a full disk: it is scanned each time
        return
