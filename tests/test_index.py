"""The index of a split: made once, found again, made anew when its files are others, and what reading by it costs."""

import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.seeds import derive, derive_all
from robustclip.data import index as indices
from robustclip.data.card import DatasetCard, load, save
from robustclip.data.index import ORDERS, scan
from robustclip.data.plan import Plan, select
from robustclip.data.shards import ROW_GROUP, Row, write_split

NAMES = ("a", "b", "c")


def made(folder, n=300, image=b"x" * 400, rows_per_file=128, **layout) -> DatasetCard:
    """Write a set of n rows and return its card."""
    rows = [Row(f"train/{i:04d}", i % len(NAMES), image) for i in range(n)]
    shards = write_split(str(folder), "train", rows, rows_per_file, **layout)
    save(DatasetCard("set", NAMES, ("{}",), {"train": n}, None, "none", "test", {"train": shards}), str(folder))
    return load(str(folder))


@pytest.fixture
def scanned(monkeypatch):
    """Return the list of the shards that are read for an index from now on."""
    read: list[str] = []
    before = indices._scan_file

    def noting(path, rows):
        read.append(path)
        return before(path, rows)

    monkeypatch.setattr(indices, "_scan_file", noting)
    return read


def same(one, two) -> bool:
    arrays = all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ("file", "row_group", "row", "label"))
    return arrays and one.id.equals(two.id) and all(np.array_equal(one.hashed(order), two.hashed(order)) for order in ORDERS)


def test_an_index_is_made_once(tmp_path, scanned):
    card = made(tmp_path)
    first, again = (scan(card.folder, card, "train") for _ in range(2))
    assert [storage.name_of(path) for path in scanned] == ["train-00000.parquet", "train-00001.parquet", "train-00002.parquet"]
    assert same(first, again)
    assert same(again, pickle.loads(pickle.dumps(again)))
    assert again.hashed("val").tolist() == [derive("val", name) for name in again.id.to_pylist()]


def test_one_shard_needs_none(tmp_path, scanned):
    card = made(tmp_path, 100)
    for _ in range(2):
        scan(card.folder, card, "train")
    assert len(scanned) == 2
    assert storage.list_files(str(tmp_path), ".arrow") == []


@pytest.mark.parametrize("other", ["another set", "a file that is none", "another's table", "a shard cut off"])
def test_an_index_of_other_files_is_not_used(tmp_path, scanned, other):
    card = made(tmp_path)
    scan(card.folder, card, "train")
    if other == "another set":
        card = made(tmp_path, 301)
    elif other == "a file that is none":
        storage.write_bytes(str(tmp_path / "train.index.arrow"), b"ARROW1 no more")
    elif other == "another's table":
        with (
            pa.OSFile(str(tmp_path / "train.index.arrow"), "wb") as stream,
            pa.ipc.new_file(stream, pa.schema([("x", pa.int64())])) as writer,
        ):
            writer.write_table(pa.table({"x": [1]}))
    else:
        storage.write_bytes(str(tmp_path / "train-00001.parquet"), b"PAR1")
        with pytest.raises(UserError, match=r"train-00001\.parquet: not a readable Parquet"):
            scan(card.folder, card, "train")
        return
    assert len(scan(card.folder, card, "train")) == card.splits["train"]
    assert len(scanned) == 6
    scan(card.folder, card, "train")
    assert len(scanned) == 6


def test_labels_are_held_against_the_card_each_time(tmp_path):
    card = made(tmp_path)
    scan(card.folder, card, "train")
    with pytest.raises(UserError, match=r"train-0000\d\.parquet: row \d+: label 2 is outside the 2 classes"):
        scan(card.folder, replace(card, class_names=("a", "b")), "train")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), UserError("no room to write it")], ids=["read-only", "full"])
def test_where_no_index_can_be_kept_the_set_is_scanned_each_time(tmp_path, scanned, monkeypatch, error):
    card = made(tmp_path)

    def refused(path):
        raise error

    monkeypatch.setattr(storage, "writing", refused)
    assert same(*(scan(card.folder, card, "train") for _ in range(2)))
    assert len(scanned) == 6


def test_many_hashes_are_those_of_each():
    names = ["a", "", "b/ä", "a\x1fb"]
    assert derive_all("val", names).tolist() == [derive("val", name) for name in names]


def amplification(folder, row_group) -> float:
    """Return the bytes of all row groups that the units of an epoch read, over the bytes of their own rows."""
    card = made(folder, 4096, rows_per_file=1024, row_group=row_group)
    index = scan(card.folder, card, "train")
    rows, _ = select(index, held_out=50)
    plan = Plan.of(index, rows, micro_batch=64, batch=256, epochs=1, seed=0)
    footers = [pq.read_metadata(path) for path in index.files]
    units = [plan.unit(step, i) for step in range(plan.steps) for i in range(plan.units_per_step)]
    read = sum(footers[file].row_group(group).total_byte_size for unit in units for file, group, _ in unit)
    own = sum(footer.row_group(g).total_byte_size for footer in footers for g in range(footer.num_row_groups)) / len(index)
    return read / (own * 64 * len(units))


def test_a_unit_reads_little_more_than_its_own_rows(tmp_path):
    """Groups as large as those of the tiny embedded sets would be read three times over."""
    assert amplification(tmp_path / "one", ROW_GROUP) < 1.3
    assert amplification(tmp_path / "two", 128) > 2.5
