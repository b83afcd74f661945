"""Parquet shards of a split: rows {id, image (encoded bytes), label} in an order that a hash of the id fixed once.

Every row group is thereby a random sample of the split: reading some of them in any order needs no global shuffle.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.seeds import derive
from robustclip.data.images import BadImage, decode

# What is read at once. A micro-batch of training takes the rows of some groups together: of 64 rows nearly all it reads is its own.
ROW_GROUP = 16
ROWS_PER_FILE = 8192
FOOTERS = 256  # files whose footers a process keeps, up to 1.4 MB each: reading them again for every group would be most of what is read
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


def write_split(
    folder: str, split: str, rows: Iterable[Row], rows_per_file: int = ROWS_PER_FILE, row_group: int = ROW_GROUP
) -> tuple[dict, ...]:
    """Write the files of a split and return {file, sha256, rows} of each, as the dataset card lists them."""
    return tuple(write_file(path, part, row_group) for path, part in files_of(folder, split, rows, rows_per_file))


def write_file(path: str, rows: Sequence[Row], row_group: int = ROW_GROUP) -> dict:
    """Write one file of a split and return its {file, sha256, rows}."""
    _write_rows(path, rows, row_group)
    return {"file": storage.name_of(path), "sha256": storage.sha256_file(path), "rows": len(rows)}


def _write_rows(path: str, rows: Sequence[Row], row_group: int) -> None:
    with storage.writing(path) as stream, pq.ParquetWriter(stream, SCHEMA, **LAYOUT) as writer:
        for start in range(0, len(rows), row_group):
            part = rows[start : start + row_group]
            images = [row.image if isinstance(row.image, bytes) else row.image() for row in part]
            columns = {"id": [row.id for row in part], "image": images, "label": [row.label for row in part]}
            writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=row_group)


def opened(path: str) -> pq.ParquetFile:
    """Return a shard opened; one that is missing or damaged is a UserError."""
    system, inside = storage.filesystem(path)
    try:
        info = system.get_file_info(inside)
        return pq.ParquetFile(inside, filesystem=system, metadata=_footer(path, info.size, info.mtime_ns))
    except FileNotFoundError as error:
        raise UserError(f"{path}: this shard is missing though dataset.json lists it; prepare the set again") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); prepare the set again with --fresh".replace("\n", " ")) from error


@lru_cache(FOOTERS)
def _footer(path: str, size: int | None, changed: int | None) -> pq.FileMetaData:
    """Return the footer of a file of this size that was changed at this time."""
    system, inside = storage.filesystem(path)
    return pq.read_metadata(inside, filesystem=system)


def check_columns(path: str, parquet: pq.ParquetFile) -> None:
    """Raise UserError unless a shard has the columns of one."""
    for name in SCHEMA.names:
        if name not in parquet.schema_arrow.names:
            raise UserError(f"{path}: the column {name!r} is missing; a shard holds {', '.join(SCHEMA.names)}")


def read_rows(path: str, row_group: int, rows: Sequence[int] | np.ndarray) -> tuple[list[str], list[bytes], np.ndarray]:
    """Return (ids, encoded images, labels int64 [m]) of some rows of one row group, in the order asked."""
    with opened(path) as parquet:
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
            raise UserError(
                f"{path}: the image {name} cannot be decoded ({error}); the shard is damaged, prepare the set again with --fresh"
            ) from error
    return ids, pixels, labels
