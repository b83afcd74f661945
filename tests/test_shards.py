"""Images, shards and cards: what is written is read back, in a fixed shuffle, and every planted fault is named."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data import datasets
from robustclip.data.card import DatasetCard, load, save, whole
from robustclip.data.datasets import ensure_set, set_folder
from robustclip.data.images import BadImage, decode
from robustclip.data.index import scan
from robustclip.data.shards import ROW_GROUP, Row, read_rows, write_split


def encoded(array, mode=None, kind="PNG", **options):
    stream = io.BytesIO()
    image = Image.fromarray(np.asarray(array, np.uint8))
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3))
RED = np.full((8, 8, 3), (255, 0, 0))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(mode):
    grey = np.full((8, 8), 255)
    if mode == "I;16":
        stream = io.BytesIO()
        Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(stream, "PNG")
        data = stream.getvalue()
    else:
        data = encoded(grey, mode)
    assert np.array_equal(decode(data), np.full((8, 8, 3), 255))


def test_cmyk_jpeg_and_palette_colours():
    assert decode(encoded(RED, "CMYK", "JPEG")).shape == (8, 8, 3)
    assert np.array_equal(decode(encoded(RED, "P")), RED)


def test_transparency_is_laid_on_white():
    clear = np.concatenate([RED, np.zeros((8, 8, 1))], 2)
    assert np.array_equal(decode(encoded(clear)), np.full((8, 8, 3), 255))
    stream = io.BytesIO()
    Image.fromarray(RED.astype(np.uint8)).quantize(2).save(stream, "PNG", transparency=0)  # the palette's first colour, red, is see-through
    assert np.array_equal(decode(stream.getvalue()), np.full((8, 8, 3), 255))


@pytest.mark.parametrize(
    ("size", "resize", "shape"),
    [(None, None, (20, 30)), (16, None, (16, 16)), (16, 18, (16, 16)), (None, 10, (10, 15)), (64, None, (64, 64))],
)
def test_sizes(size, resize, shape):
    assert decode(encoded(NOISE), size, resize).shape == (*shape, 3)


def test_the_crop_is_central_and_exif_turns_nothing():
    assert np.array_equal(decode(encoded(NOISE), 20), NOISE[:, 5:25])
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(NOISE, kind="JPEG", exif=exif)).shape == (20, 30, 3)
    with pytest.raises(ValueError, match="resize=8"):
        decode(encoded(NOISE), 16, 8)


def huge_png():
    """A PNG of a few bytes that claims 100,000 x 100,000 pixels."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(NOISE, kind="JPEG")[:-200], "truncated"),
        (encoded(NOISE)[:-200], "truncated|broken"),
        (b"", "known format"),
        (b"<html>not found</html>", "known format"),
        (huge_png(), "pixels"),
    ],
)
def test_bad_bytes_are_bad_images(data, reason):
    with pytest.raises(BadImage, match=reason) as first:
        decode(data)
    with pytest.raises(BadImage) as second:
        decode(data)
    assert str(first.value) == str(second.value)  # no addresses in reasons: they are written down


def rows(n, classes=3):
    return [Row(f"set/train/{i:04d}.png", i % classes, f"bytes {i}".encode()) for i in range(n)]


def write(folder, some_rows, rows_per_file=256, **changes):
    """Write a set with one split and return its card."""
    shards = write_split(str(folder), "train", some_rows, rows_per_file)
    n = sum(shard["rows"] for shard in shards)
    card = DatasetCard("set", ("a", "b", "c"), ("a photo of a {}.",), {"train": n}, None, "none", "a test", {"train": shards})
    save(replace(card, **changes), str(folder))
    return load(str(folder))


def test_round_trip_over_several_files(tmp_path):
    card = write(tmp_path, rows(600))
    assert [(shard["file"], shard["rows"]) for shard in card.shards["train"]] == [
        ("train-00000.parquet", 256), ("train-00001.parquet", 256), ("train-00002.parquet", 88)
    ]  # fmt: skip
    index = scan(card.folder, card, "train")
    assert len(index) == 600
    assert np.bincount(index.label).tolist() == [200, 200, 200]
    for at in (0, 300, 599):
        ids, images, labels = read_rows(index.files[index.file[at]], index.row_group[at], [index.row[at]])
        number = int(ids[0][-8:-4])
        assert (ids[0], images[0], labels[0]) == (index.ids([at])[0], f"bytes {number}".encode(), number % 3)
    assert pq.ParquetFile(tmp_path / "train-00000.parquet").metadata.row_group(0).num_rows == ROW_GROUP
    assert whole(card)


def test_read_rows_keeps_the_order_asked(tmp_path):
    card = write(tmp_path, rows(10))
    path = storage.join(card.folder, "train-00000.parquet")
    all_ids = read_rows(path, 0, range(10))[0]
    assert read_rows(path, 0, np.array([7, 2]))[0] == [all_ids[7], all_ids[2]]


def test_the_shuffle_depends_on_ids_only_and_mixes_classes(tmp_path):
    sorted_rows = sorted(rows(600), key=lambda row: row.label)
    one, two = write(tmp_path / "one", sorted_rows), write(tmp_path / "two", [*reversed(sorted_rows)])
    assert one.shards == two.shards
    index = scan(one.folder, one, "train")
    first = np.bincount(index.label[(index.file == 0) & (index.row_group == 0)], minlength=3)
    assert first.min() > ROW_GROUP / 3 * 0.6


def test_images_are_asked_for_one_row_group_at_a_time(tmp_path):
    asked = []
    write(tmp_path, [Row(row.id, row.label, lambda row=row: asked.append(row.id) or b"x") for row in rows(300)])
    assert len(asked) == len(set(asked)) == 300


def test_a_repeated_id_is_named(tmp_path):
    with pytest.raises(UserError, match=r"set/train/0003\.png.*more than once"):
        write(tmp_path, [*rows(5), rows(5)[3]])


def test_a_missing_column_names_file_and_column(tmp_path):
    card = write(tmp_path, rows(5))
    path = storage.join(card.folder, "train-00000.parquet")
    storage.write_table(path, storage.read_table(path, ["id", "image"]))
    with pytest.raises(UserError, match=r"train-00000\.parquet.*'label'"):
        scan(card.folder, card, "train")
    assert not whole(card)


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_outside_names_file_row_and_classes(tmp_path, label):
    card = write(tmp_path, [Row("only", label, b"")])
    with pytest.raises(UserError, match=rf"train-00000\.parquet: row 0: label {label} .* 3 classes"):
        scan(card.folder, card, "train")


def test_null_missing_damaged_and_shortened_shards(tmp_path):
    card = write(tmp_path, rows(5))
    path = storage.join(card.folder, "train-00000.parquet")
    table = storage.read_table(path)
    storage.write_table(path, table.slice(1))
    with pytest.raises(UserError, match="4 rows where"):
        scan(card.folder, card, "train")
    storage.write_table(path, table.set_column(2, "label", pa.array([None, 0, 0, 0, 0], pa.int64())))
    with pytest.raises(UserError, match="null"):
        scan(card.folder, card, "train")
    storage.write_bytes(path, b"PAR1 no more")
    with pytest.raises(UserError, match="not a readable Parquet"):
        scan(card.folder, card, "train")
    storage.delete(path)
    with pytest.raises(UserError, match="missing"):
        scan(card.folder, card, "train")


def test_an_unknown_split_lists_the_known(tmp_path):
    card = write(tmp_path, rows(5))
    with pytest.raises(UserError, match="no split 'val'; it has train"):
        scan(card.folder, card, "val")


def test_a_shard_name_may_not_leave_the_folder(tmp_path):
    card = write(tmp_path, rows(5), shards={"train": ({"file": "../x.parquet", "sha256": "", "rows": 5},)})
    with pytest.raises(UserError, match="file name"):
        scan(card.folder, card, "train")


def test_the_card_comes_back_and_newer_ones_are_refused(tmp_path):
    card = write(tmp_path, rows(5), skipped={"train": 2}, native_size=32)
    assert (card.class_names, card.skipped, card.native_size) == (("a", "b", "c"), {"train": 2}, 32)
    path = storage.join(card.folder, "dataset.json")
    facts = storage.read_json(path)
    storage.write_json(path, facts | {"a_later_column": 1})
    assert load(card.folder) == card
    storage.write_json(path, facts | {"schema_version": 2})
    with pytest.raises(UserError, match=r"dataset\.json: schema_version 2 is newer"):
        load(card.folder)
    del facts["splits"]
    storage.write_json(path, facts)
    with pytest.raises(UserError, match="'splits' is missing"):
        load(card.folder)


def test_a_missing_set_lists_what_there_is(tmp_path):
    write(tmp_path / "data" / "cifar10", rows(5))
    with pytest.raises(UserError, match=r"did you mean cifar10\?.*prepared: cifar10; embedded: labelled, shapes"):
        ensure_set(str(tmp_path), "cifar01", {}, 0)
    with pytest.raises(UserError, match="file name"):
        ensure_set(str(tmp_path), "../secret", {}, 0)


def test_embedded_sets_are_rendered_once_and_seeds_and_sizes_live_side_by_side(tmp_path, monkeypatch):
    out = str(tmp_path)
    card = ensure_set(out, "shapes", {"test": 40}, 1)
    assert (card.name, card.splits, card.native_size, card.render_seed, card.licence) == ("shapes", {"test": 40}, 32, 1, "Apache-2.0")
    assert "not a benchmark of real CLIP" in card.source
    index = scan(card.folder, card, "test")
    assert sorted(index.id.to_pylist())[12] == "shapes/test/000012"
    other = ensure_set(out, "shapes", {"test": 40}, 2)
    longer = ensure_set(out, "shapes", {"test": 60, "train": 10}, 1)
    assert len({card.folder, other.folder, longer.folder}) == 3
    monkeypatch.setattr(datasets, "_render", lambda *args: pytest.fail("rendered again"))
    assert ensure_set(out, "shapes", {"test": 40}, 1) == card
    longer_index = scan(longer.folder, longer, "test")
    assert pixels(longer_index)["shapes/test/000012"] == pixels(index)["shapes/test/000012"]


def pixels(index):
    return {
        key: read_rows(index.files[f], g, [r])[1][0] for key, f, g, r in zip(index.id.to_pylist(), index.file, index.row_group, index.row)
    }


def test_a_card_of_other_sizes_is_never_used(tmp_path):
    card = ensure_set(str(tmp_path), "chess", {"test": 20}, 1)
    save(replace(card, splits={"test": 21}), card.folder)
    with pytest.raises(UserError, match="delete the folder"):
        ensure_set(str(tmp_path), "chess", {"test": 20}, 1)


def test_a_failed_rendering_leaves_nothing(tmp_path):
    for sizes, word in (({"test": 2000}, "1797"), ({"train": 5}, "one split"), ({"test": 0}, "from 1 to")):
        with pytest.raises(UserError, match=word):
            ensure_set(str(tmp_path), "digits", sizes, 0)
    assert storage.list_folders(str(tmp_path / "data")) == []


def test_the_folder_of_a_set_says_what_it_depends_on():
    assert set_folder("out", "labelled", {"train": 20, "test": 5}, 7) == "out/data/labelled-r7-test5-train20"
    assert set_folder("out", "cifar10", {"train": 20}, 7) == "out/data/cifar10"
