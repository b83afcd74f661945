"""Turn records into tables, figures and one HTML page: report.py [--protocol NAME_OR_HASH] [--compare A B] [MODEL ...]."""

import pyarrow as pa
import pyarrow.compute as pc
import tyro

from robustclip import errors, records, report, storage


def choose(folder: str, protocol: str) -> tuple[str, list[str]]:
    """Return the one protocol hash that `protocol` (a name, the start of a hash, or nothing) stands for, and its record files."""
    files: dict[tuple[str, str], list[str]] = {}
    for path in storage.list_files(folder, ".parquet"):
        row = storage.read_table(path, ["protocol", "protocol_hash"]).slice(0, 1).to_pylist()
        for each in row:
            files.setdefault((each["protocol"], each["protocol_hash"]), []).append(path)
    found = {key: paths for key, paths in files.items() if not protocol or key[0] == protocol or key[1].startswith(protocol)}
    if not found:
        known = ", ".join(sorted({name for name, _ in files})) or "none at all: run pipelines/evaluate.py first"
        raise errors.UserError(f"{folder} holds no records of protocol {protocol or 'any name'}; there are: {known}")
    if len(found) > 1:
        lines = "; ".join(f"{name} {key[:12]} ({describe(paths)})" for (name, key), paths in found.items())
        raise errors.UserError(f"records of {len(found)} protocols cannot be compared; choose one with --protocol HASH: {lines}")
    return next((key, paths) for (_, key), paths in found.items())


def describe(paths: list[str]) -> str:
    """Return how many models a protocol's record files are about and when the last was written."""
    models = {model for path in paths for model in pc.unique(storage.read_table(path, ["model"])["model"]).to_pylist()}
    last = max(system.get_file_info(inside).mtime for system, inside in map(storage.filesystem, paths))
    return f"{len(models)} models, last written {last:%Y-%m-%d %H:%M} UTC"


def main(
    models: tyro.conf.Positional[tuple[str, ...]] = (), out: str = "outputs", protocol: str = "", compare: tuple[str, ...] = ()
) -> None:
    """Report on MODELS (default: all records of PROTOCOL, a name or the start of a hash), or say whether COMPARE's A is better than B."""
    out = storage.resolve(out)
    if compare and len(compare) != 2:
        raise errors.UserError("--compare takes two models: --compare A B")
    folder = storage.join(out, "records")
    protocol_hash, paths = choose(folder, protocol)
    table = pa.concat_tables(records.read(folder, storage.name_of(path).removesuffix(".parquet")) for path in paths)
    described = storage.read_json(storage.join(out, "protocols", f"{protocol_hash}.json"))
    if compare:
        print(report.from_records(table, described, compare, chosen=compare[0], baseline=compare[1]).comparison())
        return
    built = report.from_records(table, described, models)
    where = built.write(storage.join(out, "reports", protocol_hash[:12]))
    print(f"{built.markdown()}\nEverything lies in {storage.parent_of(where)}; open {where} in a browser.")


if __name__ == "__main__":
    errors.main(lambda: tyro.cli(main))
