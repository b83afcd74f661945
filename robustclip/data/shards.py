"""Parquet shards of a split: rows {id, image (encoded bytes), label} in an order that a hash of the id fixed once.

Every row group is thereby a random sample of the split: reading some of them in any order needs no global shuffle.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.seeds import derive
from robustclip.data.card import DatasetCard
from robustclip.data.images import BadImage, decode

ROW_GROUP = 128
ROWS_PER_FILE = 64 * ROW_GROUP
SCHEMA = pa.schema([("id", pa.string()), ("image", pa.binary()), ("label", pa.int64())])
# The bytes are compressed images: compressing again, dictionaries or min/max of images would only cost.
LAYOUT: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": ["label"]}


@dataclass(frozen=True)
class Row:
    """One image of a split; `image` is encoded bytes, or gives them when their turn comes, so that a large set is never held at once."""

    id: str
    label: int
    image: bytes | Callable[[], bytes]


def shuffled(rows: Iterable[Row]) -> list[Row]:
    """Return the rows in the order of a hash of their ids, whatever order they came in; a repeated id is a UserError."""
    ordered = sorted(rows, key=lambda row: (derive("shard", row.id), row.id))
    for row, following in pairwise(ordered):
        if row.id == following.id:
            raise UserError(f"the id {row.id!r} occurs more than once; every image needs an id of its own")
    return ordered


def files_of(folder: str, split: str, rows: Iterable[Row], rows_per_file: int = ROWS_PER_FILE) -> list[tuple[str, list[Row]]]:
    """Return the path and the rows of each file of a split: <split>-00000.parquet ..."""
    ordered = shuffled(rows)
    parts = [ordered[start : start + rows_per_file] for start in range(0, len(ordered), rows_per_file)]
    return [(storage.join(folder, f"{storage.safe_name(split)}-{i:05d}.parquet"), part) for i, part in enumerate(parts)]


def write_split(folder: str, split: str, rows: Iterable[Row], rows_per_file: int = ROWS_PER_FILE) -> tuple[dict, ...]:
    """Write the files of a split and return {file, sha256, rows} of each, as the dataset card lists them."""
    return tuple(write_file(path, part) for path, part in files_of(folder, split, rows, rows_per_file))


def write_file(path: str, rows: Sequence[Row]) -> dict:
    """Write one file of a split and return its {file, sha256, rows}."""
    _write_rows(path, rows)
    return {"file": storage.name_of(path), "sha256": storage.sha256_file(path), "rows": len(rows)}


def _write_rows(path: str, rows: Sequence[Row]) -> None:
    with storage.writing(path) as stream, pq.ParquetWriter(stream, SCHEMA, **LAYOUT) as writer:
        for start in range(0, len(rows), ROW_GROUP):
            part = rows[start : start + ROW_GROUP]
            images = [row.image if isinstance(row.image, bytes) else row.image() for row in part]
            columns = {"id": [row.id for row in part], "image": images, "label": [row.label for row in part]}
            writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=ROW_GROUP)


@dataclass(frozen=True, eq=False)
class Index:
    """Where every row of a split lies: n rows as arrays of (file, row_group, row in the group, label, id); `file` counts in `files`."""

    files: tuple[str, ...]
    file: np.ndarray
    row_group: np.ndarray
    row: np.ndarray
    label: np.ndarray
    id: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.label)


def scan(folder: str, card: DatasetCard, split: str) -> Index:
    """Return the index of a split, read from the id and label columns only; rows that contradict the card are a UserError."""
    if split not in card.shards:
        raise UserError(f"{folder}: the set {card.name} has no split {split!r}; it has {', '.join(card.shards) or 'none'}")
    files = tuple(storage.join(folder, storage.safe_name(shard["file"])) for shard in card.shards[split])
    if not files:
        raise UserError(f"{folder}: the split {split!r} of {card.name} is empty; prepare it again")
    parts = [_scan_file(path, shard["rows"], len(card.class_names)) for path, shard in zip(files, card.shards[split], strict=True)]
    return Index(
        files=files,
        file=np.repeat(np.arange(len(files), dtype=np.int32), [len(part["label"]) for part in parts]),
        class_names=card.class_names,
        **{key: np.concatenate([part[key] for part in parts]) for key in parts[0]},
    )


def _scan_file(path: str, rows: int, classes: int) -> dict[str, np.ndarray]:
    with _opened(path) as parquet:
        _check_columns(path, parquet)
        sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
        table = parquet.read(columns=["id", "label"])
    if table.num_rows != rows:
        raise UserError(f"{path}: holds {table.num_rows} rows where dataset.json says {rows}; prepare the set again")
    if table.column("label").null_count or table.column("id").null_count:
        raise UserError(f"{path}: an id or a label is missing (null); prepare the set again")
    label = table.column("label").to_numpy().astype(np.int64)
    for row in np.flatnonzero((label < 0) | (label >= classes))[:1]:
        raise UserError(f"{path}: row {row}: label {label[row]} is outside the {classes} classes (0 to {classes - 1}) of dataset.json")
    return {
        "row_group": np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        "row": np.concatenate([np.arange(size, dtype=np.int32) for size in sizes] or [np.zeros(0, np.int32)]),
        "label": label,
        "id": np.array(table.column("id").to_pylist(), dtype=object),
    }


def _opened(path: str) -> pq.ParquetFile:
    system, inside = storage.filesystem(path)
    try:
        return pq.ParquetFile(inside, filesystem=system)
    except FileNotFoundError as error:
        raise UserError(f"{path}: this shard is missing though dataset.json lists it; prepare the set again") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); prepare the set again".replace("\n", " ")) from error


def _check_columns(path: str, parquet: pq.ParquetFile) -> None:
    for name in SCHEMA.names:
        if name not in parquet.schema_arrow.names:
            raise UserError(f"{path}: the column {name!r} is missing; a shard holds {', '.join(SCHEMA.names)}")


def read_rows(path: str, row_group: int, rows: Sequence[int] | np.ndarray) -> tuple[list[str], list[bytes], np.ndarray]:
    """Return (ids, encoded images, labels int64 [m]) of some rows of one row group, in the order asked."""
    with _opened(path) as parquet:
        table = parquet.read_row_group(int(row_group), columns=SCHEMA.names).take(np.asarray(rows, dtype=np.int64))
    return table.column("id").to_pylist(), table.column("image").to_pylist(), table.column("label").to_numpy().astype(np.int64)


def read_pixels(
    path: str,
    row_group: int,
    rows: Sequence[int] | np.ndarray,
    size: int | None = None,
    resize: int | None = None,
    interpolation: str = "bicubic",
) -> tuple[list[str], list[np.ndarray], np.ndarray]:
    """Return what read_rows does with the images decoded to uint8 [H,W,3]; one that cannot be decoded is a UserError naming it."""
    ids, images, labels = read_rows(path, row_group, rows)
    pixels = []
    for name, image in zip(ids, images, strict=True):
        try:
            pixels.append(decode(image, size, resize, interpolation))
        except BadImage as error:
            raise UserError(f"{path}: the image {name} cannot be decoded ({error}); the shard is damaged, prepare the set again") from error
    return ids, pixels, labels
