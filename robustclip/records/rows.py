"""One row per image x attack x eps x model: the only thing the evaluator writes and everything that is printed is computed from."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.labels import told_apart as labels_of

SCHEMA_VERSION = 2
FOLDER = "records"  # of the results, where they lie
CLEAN = "clean"  # the attack column of the unattacked rows; their eps is 0
CLEAN_ONLY = "clean, not attacked"  # the same of images that the protocol only looks at clean
NO_CLASS = -1  # the prediction for an attacked image whose logits are not all finite: not right, and counted apart from wrong ones

_STRINGS = (
    "protocol protocol_hash cell_key result_key model model_sha256 dataset split shard_sha256 image_id attack attack_config norm level "
    "text_budget prompts_hash precision versions commit"
)
_INTEGERS = "label clean_prediction prediction written first_success seed restarts forwards threads seen_prediction"
_FLOATS = "eps confidence linf l2 loss_start loss_best loss_end zero_gradient nonfinite_gradient seconds"
SCHEMA = pa.schema(
    [("schema_version", pa.int32())]
    + [(name, pa.string()) for name in _STRINGS.split()]
    + [(name, pa.int64()) for name in _INTEGERS.split()]
    + [(name, pa.float64()) for name in _FLOATS.split()]
    + [("correct", pa.bool_())]
)
# Columns that files of earlier schema versions lack, with the first that has them: what such a file says of them is that nobody knows.
LATER = {"confidence": 2, "written": 2, "seen_prediction": 2}
# Two honest runs of one cell differ in these columns and in no other.
VOLATILE = ("seconds", "versions", "commit")


def table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema = SCHEMA) -> pa.Table:
    """Return rows as a table: columns of the schema that are not known are null, a column that does not exist raises UserError."""
    rows = [{"schema_version": SCHEMA_VERSION, **row} for row in rows]
    unknown = {name for row in rows for name in row} - set(schema.names)
    if unknown:
        raise UserError(f"records have no column {sorted(unknown)[0]!r}; see robustclip/records/rows.py")
    return pa.Table.from_pylist(rows, schema=schema)


def told_apart(records: pa.Table) -> pa.Table:
    """Return records with another name for each model where several go by one: evaluated by commands that did not know of each other."""
    pairs = list(zip(records["model"].to_pylist(), records["model_sha256"].to_pylist()))
    labels = labels_of(pairs)
    column = records.schema.get_field_index("model")
    return records.set_column(column, "model", pa.array([labels[pair] for pair in pairs], pa.string()))


def content_sha256(records: pa.Table, schema: pa.Schema = SCHEMA) -> str:
    """Return the hash of everything in the rows, all columns of the schema that are there but the VOLATILE ones."""
    rows = records.select([name for name in schema.names if name in records.column_names and name not in VOLATILE]).to_pylist()
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def path(folder: str, cell_key: str) -> str:
    """Return where the records of a cell lie."""
    return storage.join(folder, f"{cell_key}.parquet")


def write(folder: str, cell_key: str, records: pa.Table, schema: pa.Schema = SCHEMA) -> None:
    """Write the records of one cell atomically, with the hash of their content in the file's metadata."""
    metadata = {b"content_sha256": content_sha256(records, schema).encode()}
    storage.write_table(path(folder, cell_key), records.replace_schema_metadata(metadata))


def read(folder: str, cell_key: str, schema: pa.Schema = SCHEMA) -> pa.Table:
    """Return the records of one cell; raises UserError when the file was made by a newer version or its content does not match its hash."""
    where = path(folder, cell_key)
    try:
        records = storage.read_table(where)
    except pa.ArrowInvalid as error:
        raise UserError(f"{where} is not a readable Parquet file: delete it and run the same command again") from error
    if "schema_version" not in records.column_names or not len(records):
        raise UserError(f"{where} holds no records: delete it and run the same command again")
    version = max(records["schema_version"].to_pylist())
    if version > SCHEMA_VERSION:
        raise UserError(f"{where} has schema version {version}, this robustclip reads up to {SCHEMA_VERSION}: upgrade robustclip")
    known = [name for name in schema.names if LATER.get(name, 0) <= version]
    for name in known:
        if name not in records.column_names:
            raise UserError(f"{where} has no column {name!r}: delete it and run the same command again")
    stored = (records.schema.metadata or {}).get(b"content_sha256", b"").decode()
    records = records.select(known).cast(pa.schema([schema.field(name) for name in known]))
    if stored != content_sha256(records, schema):
        raise UserError(f"{where} does not match its own hash: it was changed or damaged; delete it and run the same command again")
    for name in set(schema.names) - set(known):
        records = records.append_column(schema.field(name), pa.nulls(len(records), schema.field(name).type))
    return records.select(schema.names)
