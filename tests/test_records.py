"""Records: one schema, a hash over all that must repeat, and refusals of what was changed or is newer."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robustclip.base.errors import UserError
from robustclip.records import rows as records


def rows(n=3):
    return [
        {"image_id": f"set/{i}", "attack": "pgd-10", "eps": 4.0, "label": i, "prediction": 0, "correct": i == 0, "seconds": 0.1}
        for i in range(n)
    ]


def test_rows_come_back_as_they_were_written(tmp_path):
    table = records.table(rows())
    records.write(str(tmp_path), "cell", table)
    back = records.read(str(tmp_path), "cell")
    assert back.to_pylist() == table.to_pylist()
    assert back.schema.names == records.SCHEMA.names
    first = back.to_pylist()[0]
    assert (first["image_id"], first["correct"], first["norm"], first["schema_version"]) == ("set/0", True, None, records.SCHEMA_VERSION)


def test_an_unknown_column_is_refused():
    with pytest.raises(UserError, match="'predicton'"):
        records.table([{"predicton": 1}])


@pytest.mark.parametrize("name", [field.name for field in records.SCHEMA])
def test_the_content_hash_covers_every_column_but_the_volatile_ones(name):
    field = records.SCHEMA.field(name)
    value = {pa.string(): "other", pa.int64(): 7, pa.int32(): 7, pa.float64(): 7.5, pa.bool_(): True}[field.type]
    plain = records.table([*rows(1), {"image_id": "last"}])
    changed = records.table([*rows(1), {"image_id": "last", name: value}])
    same = records.content_sha256(plain) == records.content_sha256(changed)
    assert same == (name in ("seconds", "versions", "commit"))


def test_the_content_hash_covers_rows_and_their_order():
    table = records.table(rows())
    assert len({records.content_sha256(part) for part in (table, table.slice(1), table.take([1, 0, 2]))}) == 3


def tampered(folder, change):
    """Rewrite a record file with its old metadata after `change`."""
    records.write(folder, "cell", records.table(rows()))
    path = records.path(folder, "cell")
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def as_version_one_wrote(folder):
    """Write a record file as it was before rows had all columns, with the hash that it was given then."""
    table = records.table([row | {"schema_version": 1} for row in rows()]).drop_columns(["confidence", "written", "seen_prediction"])
    hashed = [name for name in table.column_names if name not in ("seconds", "versions", "commit")]
    sha256 = hashlib.sha256(json.dumps(table.select(hashed).to_pylist(), sort_keys=True).encode()).hexdigest()
    pq.write_table(table.replace_schema_metadata({b"content_sha256": sha256.encode()}), records.path(folder, "old"))


def test_a_file_of_an_earlier_version_is_read_and_what_it_lacks_is_unknown(tmp_path):
    as_version_one_wrote(str(tmp_path))
    records.write(str(tmp_path), "new", records.table([row | {"confidence": 0.5, "written": 2} for row in rows()]))
    both = pa.concat_tables([records.read(str(tmp_path), cell) for cell in ("old", "new")])
    assert both.schema.equals(records.SCHEMA)
    assert both["confidence"].to_pylist() == [None] * 3 + [0.5] * 3
    assert both["written"].to_pylist() == [None] * 3 + [2] * 3
    assert both["seen_prediction"].to_pylist() == [None] * 6
    assert both["schema_version"].to_pylist() == [1] * 3 + [records.SCHEMA_VERSION] * 3


def test_a_changed_file_of_an_earlier_version_is_refused(tmp_path):
    as_version_one_wrote(str(tmp_path))
    table = pq.read_table(records.path(str(tmp_path), "old"))
    for change, said in ((set_column("correct", [True] * 3), "own hash"), (lambda table: table.drop_columns(["eps"]), "no column 'eps'")):
        pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), records.path(str(tmp_path), "old"))
        with pytest.raises(UserError, match=said):
            records.read(str(tmp_path), "old")


def test_a_file_of_this_version_without_a_new_column_is_refused(tmp_path):
    tampered(str(tmp_path), lambda table: table.drop_columns(["confidence"]))
    with pytest.raises(UserError, match="has no column 'confidence'"):
        records.read(str(tmp_path), "cell")


def set_column(name, values):
    return lambda table: table.set_column(table.schema.get_field_index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_column("correct", [True] * 3), "does not match its own hash"),
        (lambda table: table.slice(1), "does not match its own hash"),
        (lambda table: table.slice(3), "holds no records"),
        (lambda table: table.drop_columns(["schema_version"]), "holds no records"),
        (lambda table: table.drop_columns(["eps"]), "has no column 'eps'"),
        (set_column("schema_version", pa.array([1, 1, records.SCHEMA_VERSION + 1], pa.int32())), "upgrade robustclip"),
    ],
)
def test_a_changed_file_is_refused(tmp_path, change, said):
    tampered(str(tmp_path), change)
    with pytest.raises(UserError, match=said):
        records.read(str(tmp_path), "cell")


def test_volatile_columns_may_differ(tmp_path):
    tampered(str(tmp_path), set_column("seconds", [5.0] * 3))
    assert records.read(str(tmp_path), "cell")["seconds"].to_pylist() == [5.0] * 3


def test_damaged_bytes_are_refused(tmp_path):
    (tmp_path / "cell.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match=r"cell\.parquet"):
        records.read(str(tmp_path), "cell")
