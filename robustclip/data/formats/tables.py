"""Sets as tables: Parquet as Hugging Face writes it, and Hateful Memes' lines of JSON."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data.formats.base import Asked, Images, Item, Listed, Reading, lines, listed, numbered, plain, require, split_of
from robustclip.data.sources import Tree, stem_of
from robustclip.data.spool import Place

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img", "jpg", "png", "webp"), ("label", "fine_label", "cls", "labels", "class")
BATCH = 64  # rows that are held at once
MEMES = {"train": "train", "dev": "val", "dev_seen": "val", "dev_unseen": "val", "test_seen": "test", "test_unseen": "test", "test": "test"}


def parquet(tree: Tree, asked: Asked) -> Reading | None:
    """Read Parquet files of {image: {bytes, path}, label}: names of classes from the schema, splits from names as train-00000-of-00002."""
    files = tree.find(r"[^/]+\.parquet")
    if not files:
        return None
    splits = {name: split_of(tree, name, asked) for name in files}
    schemas = {name: _with(tree, name, lambda table: table.schema_arrow) for name in files}
    columns = {name: _columns(tree, name, schema) for name, schema in schemas.items()}
    written = {_class_names(schema, columns[name][1]) for name, schema in schemas.items()}
    if len(written) > 1:
        raise UserError(f"{tree}: its Parquet files name different classes; give those of one set")
    keys, names = _named(written.pop(), asked, lambda: _labels(tree, columns))
    place = {key: i for i, key in enumerate(keys)}

    def items() -> Iterator[Item]:
        for name, (image, label) in columns.items():
            for row, (cell, key) in enumerate(_cells(tree, name, image, label)):
                where = f"{name}, row {row}"
                at = key if isinstance(key, int) else place.get(str(key), -1)
                fault = "" if 0 <= at < len(keys) else f"{where}: label {key!r} is none of the {len(keys)} classes"
                data = cell.get("bytes") if isinstance(cell, dict) else cell
                if not isinstance(data, bytes):
                    fault = fault or f"{where}: has no bytes of an image"
                yield Item(splits[name], at, f"{stem_of(name)}-{row:06d}", made=tree.spool.keep(data or b""), fault=fault)

    return Reading("Hugging Face Parquet", keys, names, items())


def _with(tree: Tree, name: str, look: Callable[[pq.ParquetFile], Any]) -> Any:
    """Return what a function sees in a Parquet file; one that cannot be read is a UserError."""
    try:
        with tree.open(name) as stream, pq.ParquetFile(stream) as table:
            return look(table)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{tree}: {name} is no readable Parquet file ({error}); fetch it again".replace("\n", " ")) from error


def _labels(tree: Tree, columns: dict[str, tuple[str, str]]) -> set[Any]:
    """Return all labels of the files."""
    read = [_with(tree, name, partial(_column, label=label)) for name, (_, label) in columns.items()]
    return {label for column in read for label in column.unique().to_pylist() if label is not None}


def _column(table: pq.ParquetFile, label: str) -> pa.ChunkedArray:
    return table.read(columns=[label]).column(0)


def _named(keys: tuple[str, ...], asked: Asked, labels: Callable[[], set[Any]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return keys and names of classes: as the schema names them, else what the labels are, numbers or names."""
    if keys:
        return keys, tuple(map(plain, keys))
    found = labels()
    if not all(isinstance(label, int) for label in found):
        keys = tuple(sorted(map(str, found)))
        return keys, tuple(map(plain, keys))
    keys = tuple(map(str, range(max(found, default=-1) + 1)))
    return keys, numbered((), asked, len(keys))


def _columns(tree: Tree, name: str, schema: pa.Schema) -> tuple[str, str]:
    chosen = []
    for kind, known in (("images", IMAGE_COLUMNS), ("labels", LABEL_COLUMNS)):
        column = next((column for column in known if column in schema.names), None)
        if column is None:
            raise UserError(f"{tree}: {name} has no column of {kind} ({', '.join(known)}); it has {', '.join(schema.names)}")
        chosen.append(column)
    return chosen[0], chosen[1]


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Return the names that Hugging Face's ClassLabel keeps in the schema's metadata, none without."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    names = [names[key] for key in sorted(names, key=int)] if isinstance(names, dict) else names
    return tuple(map(str, names))


def _cells(tree: Tree, name: str, image: str, label: str) -> Iterator[tuple[Any, Any]]:
    with tree.open(name) as stream, pq.ParquetFile(stream) as table:
        for batch in table.iter_batches(batch_size=BATCH, columns=[image, label]):
            yield from zip(batch.column(image).to_pylist(), batch.column(label).to_pylist())


def memes(tree: Tree, asked: Asked) -> Reading | None:
    """Read Hateful Memes: train.jsonl, dev*.jsonl, test_seen.jsonl, test_unseen.jsonl of {id, img, label} beside img/.

    A file that has no labels (the first test.jsonl) is left out; an image that two files of one split list is there once.
    """
    found = {stem: name for stem in MEMES if (name := tree.only(rf"{stem}\.jsonl"))}
    if not found:
        return None
    images = Images(tree, "img")
    require(tree, "lists of Hateful Memes are there", {"img/": images.files})
    rows: dict[tuple[str, str, Any], Listed] = {}
    unlabelled: list[str] = []
    for stem, name in found.items():
        for number, line in lines(tree, name):
            where = f"{storage.name_of(name)}, line {number}"
            try:
                facts = json.loads(line)
                image = str(facts["img"])
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"{tree}: {where} is no {{id, img, label}} in JSON ({error}); fetch it again") from error
            if "label" not in facts:
                unlabelled.append(name)
                break
            rows.setdefault((MEMES[stem], image, facts["label"]), Listed(where, MEMES[stem], image, facts["label"]))
    names = numbered((), asked, 2)
    items = listed(images, rows.values(), lambda key: key if isinstance(key, int) else None, 2)
    said = [f"{name} has no labels and is left out" for name in unlabelled]
    if asked.squash:
        items = [_squashed(item, asked.squash) for item in items]
        said.append(f"every image is scaled to {asked.squash} x {asked.squash} pixels, whatever its shape, as its protocols do")
    return Reading("Hateful Memes' JSON lines", names, names, items, said=said)


def _squashed(item: Item, side: int) -> Item:
    place = item.entry.open if item.entry else None
    return Item(item.split, item.label, item.id, made=Squashed(place, side), fault=item.fault) if isinstance(place, Place) else item


@dataclass(frozen=True, slots=True)
class Squashed:
    """An image, which lies somewhere, scaled to a square of `side` pixels, as a PNG."""

    place: Place
    side: int

    def read(self) -> bytes:
        """Return the PNG; raises BadImage as `decode` does."""
        from PIL import Image

        from robustclip.data.images import decode

        stream = io.BytesIO()
        Image.fromarray(decode(self.place.read())).resize((self.side, self.side), Image.Resampling.BILINEAR).save(
            stream, "PNG", compress_level=1
        )
        return stream.getvalue()
