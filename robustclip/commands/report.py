"""Turn records into tables, figures and one HTML page.

Example: robustclip report --protocol demo tiny-vit8 my-tecoa
"""

import argparse
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from robustclip.base import errors, storage
from robustclip.records import findings
from robustclip.records import rows as records
from robustclip.records.prompts import read_all
from robustclip.results import report
from robustclip.results.page import Page
from robustclip.runtime import cli


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="in this order, the last against the first (default: all, by name)")
    parser.add_argument("--out", default="outputs", help="path or file://, s3://, gs:// URI (default: %(default)s)")
    parser.add_argument("--protocol", default="", help="name or start of the hash; needed when there are records of several")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="only say whether A is better than B")
    return parser


def choose(folder: str, protocol: str) -> tuple[str, list[str]]:
    """Return the one protocol hash that `protocol` (a name, the start of a hash, or nothing) stands for, and its record files."""
    files: dict[tuple[str, str], list[str]] = {}
    for path in storage.list_files(folder, ".parquet"):
        for row in storage.read_table(path, ["protocol", "protocol_hash"]).slice(0, 1).to_pylist():
            files.setdefault((row["protocol"], row["protocol_hash"]), []).append(path)
    found = {key: paths for key, paths in files.items() if not protocol or key[0] == protocol or key[1].startswith(protocol)}
    if not found:
        known = f"there are: {', '.join(sorted({name for name, _ in files}))}" if files else "run robustclip evaluate first"
        raise errors.UserError(f"{folder} holds no records{f' of protocol {protocol!r}' if protocol else ''}; {known}")
    if len(found) > 1:
        lines = "; ".join(f"{name} {key[:12]} ({describe(paths)})" for (name, key), paths in sorted(found.items()))
        raise errors.UserError(f"records of {len(found)} protocols cannot be compared; choose one with --protocol HASH: {lines}")
    return next((key, paths) for (_, key), paths in found.items())


def describe(paths: list[str]) -> str:
    """Return how many models a protocol's record files are about and when the last was written."""
    models = {model for path in paths for model in pc.unique(storage.read_table(path, ["model"])["model"]).to_pylist()}
    last = max(system.get_file_info(inside).mtime for system, inside in map(storage.filesystem, paths))
    return f"{len(models)} {'model' if len(models) == 1 else 'models'}, last written {last:%Y-%m-%d %H:%M} UTC"


def _name(model: str, weights: Mapping[str, str]) -> str:
    """Return what records call a model, of which `weights` tells the hashes: found by its own where it is a folder, or made of some.

    Raises UserError where the records of its name are of other weights.
    """
    configs = [storage.join(storage.resolve(model), name) for name in ("config.json", "open_clip_config.json")] if ":" not in model else []
    if model in weights or (configs and not any(map(storage.exists, configs))):
        return model
    from robustclip.names import display_name, identity

    display = display_name(model)
    if display == model:  # of the zoo
        return model
    try:
        sha256 = identity(model)
    except errors.UserError:  # its weights lie elsewhere by now: what its card says is all there is
        return display
    found = [name for name, recorded in weights.items() if recorded == sha256]
    if not found and display in weights:
        raise errors.UserError(
            f"{model}: the records of {display} are of other weights ({weights[display][:12]}..., not {sha256[:12]}...): evaluate it first"
        )
    return display if display in found or not found else found[0]


def asked() -> tuple[argparse.Namespace, str]:
    """Return the command line and where results are; raises UserError for what cannot be."""
    args = parser().parse_args()
    return args, cli.out_folder(args)


def run() -> None:
    args, out = asked()
    folder = storage.join(out, "records")
    protocol_hash, paths = choose(folder, args.protocol)
    described = storage.join(out, "protocols", f"{protocol_hash}.json")
    if not storage.exists(described):
        raise errors.UserError(f"{described} is missing: run robustclip evaluate again, it writes it and does no finished work twice")
    protocol = storage.read_json(described)
    table = records.told_apart(pa.concat_tables(records.read(folder, storage.name_of(path).removesuffix(".parquet")) for path in paths))
    weights = {row["model"]: row["model_sha256"] for row in table.group_by(["model", "model_sha256"]).aggregate([]).to_pylist()}
    args.models, args.compare = ([_name(model, weights) for model in given] for given in (args.models, args.compare or ()))
    checks = findings.read(out, protocol_hash, weights)
    if args.compare:
        a, b = args.compare
        print(Page(report.from_records(table, protocol, args.compare, chosen=a, baseline=b, checks=checks)).comparison())
        return
    models = args.models or sorted(pc.unique(table["model"]).to_pylist())
    prompts = read_all(out, protocol_hash, {sha256: name for name, sha256 in weights.items() if name in models})
    chosen = None if args.models else models[0]  # no comparison unasked
    built = report.from_records(table, protocol, models, chosen=chosen, checks=checks, prompts=prompts)
    page = Page(built).write(storage.join(out, "reports", protocol_hash[:12]))
    print(f"{Page(built).markdown()}\nEverything lies in {storage.parent_of(page)}; open {page} in a browser.")
