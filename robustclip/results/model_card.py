"""The robust card of a model: README.md as hubs read it, with what its weights were measured to withstand and what was not measured."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.records import findings, rows
from robustclip.results import report, sheets
from robustclip.results.report import Report

NOT_SAID = "not said where the training images lie: ask their source"
TAGS = ("clip", "zero-shot-image-classification", "adversarial-robustness", "robustclip")
KINDS = {  # of attacks, by what their names have in them
    "attacks on the class prompts": ("text:", "co-attack", "sga", "separate"),
    "attacks without gradients (Square)": ("square", "autoattack"),
    "targeted attacks (APGD-T, FAB-T)": ("apgd-t", "fab-t", "autoattack"),
}
ALWAYS = (
    "other training seeds, other images and other class names than those above",
    "the tower as a part of another system, such as a language model that looks through it",
    "attacks that nobody has thought of yet: robust accuracy is an upper bound",
)


@dataclass(frozen=True)
class About:
    """What a card says of a model beside its numbers: its name, weights, use, where it comes from, and the licences of that.

    `source` is what was exported, `library` what loads it, `use` the code that does, `base` the model it was fine-tuned from, `hub` the
    name of that on a hub, `licence` a hub's name of its licence ("": unknown), `data` training set -> licence, `training` the config.
    """

    name: str
    source: str
    sha256: str
    library: str
    use: str
    base: str = ""
    hub: str = ""
    licence: str = ""
    data: Mapping[str, str] | None = None
    training: Mapping[str, Any] | None = None


def measured(out: str, sha256: str) -> tuple[list[Report], list[str]]:
    """Return a report on the weights under each protocol whose records under `out` are finished, and why others are not."""
    found: dict[str, list[str]] = {}
    folder = storage.join(out, "records")
    for path in storage.list_files(folder, ".parquet"):
        for row in storage.read_table(path, ["model_sha256", "protocol_hash"]).slice(0, 1).to_pylist():
            if row["model_sha256"] == sha256:
                found.setdefault(row["protocol_hash"], []).append(storage.name_of(path).removesuffix(".parquet"))
    reports, unfinished = [], []
    for protocol_hash, keys in sorted(found.items()):
        table = pa.concat_tables(rows.read(folder, key) for key in keys)
        name = table["model"][-1].as_py()  # one model, whatever it was called when
        table = table.set_column(table.schema.get_field_index("model"), "model", pa.array([name] * len(table), pa.string()))
        try:
            protocol = storage.read_json(storage.join(out, "protocols", f"{protocol_hash}.json"))
            built = report.from_records(table, protocol, [name], checks=findings.read(out, protocol_hash, {name: sha256}))
        except (UserError, FileNotFoundError) as error:
            unfinished.append(f"protocol {protocol_hash[:12]}: {error}")
        else:
            reports.append(built)
    return reports, unfinished


def written(about: About, reports: Sequence[Report], unfinished: Sequence[str] = ()) -> str:
    """Return the card as Markdown with its front matter."""
    use = [f"# {about.name}", "", f"{about.source} (sha256 {about.sha256}), exported by robustclip.", "", "```python", about.use, "```"]
    parts = [_front(about), "\n".join(use), *map(_numbers, reports)]
    if not reports:
        parts.append("## What it withstands\n\nNot known: there is no record of these weights, and so this card has no number.")
    parts += [_training(about), _gaps(reports, unfinished), _licences(about)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _front(about: About) -> str:
    """Return the YAML that hubs read; JSON's strings are YAML's."""
    defence = _kind(about.training, "defense")
    lines = ["---", f"library_name: {about.library}", "pipeline_tag: zero-shot-image-classification", "tags:"]
    lines += [f"- {json.dumps(tag)}" for tag in (*TAGS, *([defence.lower()] if defence else []))]
    lines += [f"base_model: {json.dumps(about.hub)}"] if about.hub else []
    lines += [f"license: {about.licence}"] if about.licence else ["license: other", "license_name: that-of-the-base-model-and-the-images"]
    return "\n".join([*lines, "---"])


def _kind(training: Mapping[str, Any] | None, part: str) -> str:
    return str(((training or {}).get(part) or {}).get("type", ""))


def _numbers(found: Report) -> str:
    table = (
        sheets.main(found).markdown().replace("## Clean and robust accuracy", f"## What it withstands: protocol {found.protocol['name']}")
    )
    said = findings.summary(found.checks[found.chosen]) if found.checks.get(found.chosen) else "checks: none were run, so it is not ranked"
    lines = [said, *found.meaning()]
    return "\n".join([table, *(f"- {line}" for line in lines), "", *([sheets.per_set(found).markdown()] if len(found.classes) > 1 else [])])


def _training(about: About) -> str:
    lines = ["## How it was made", "", f"Fine-tuned from {about.base}." if about.base else "It was not fine-tuned by robustclip."]
    if about.training:
        whole = json.dumps(about.training, indent=2, sort_keys=True, ensure_ascii=False)
        what = f"Defence {_kind(about.training, 'defense')}, what learned: {_kind(about.training, 'trainable')}."
        lines += [f"{what} The whole config; eps in 1/255:", "", "```json", whole, "```"]
    return "\n".join(lines)


def _gaps(reports: Sequence[Report], unfinished: Sequence[str]) -> str:
    """Return what no number above is about, from what the protocols had."""
    attacks = [attack for found in reports for attack in found.protocol["attacks"]]
    norms = {str(found.protocol.get("norm", "")) for found in reports}
    gaps = [] if reports else ["anything: no attack at any eps on any images"]
    if reports:
        gaps += [f"{norm} at any eps" for norm in ("Linf", "L2") if norm not in norms]
        gaps += [f"eps above {max(found.eps[-1] for found in reports):g}/255"]
        gaps += [what for what, names in KINDS.items() if not any(name in attack for attack in attacks for name in names)]
        gaps += [] if any(found.real for found in reports) else ["photographs: no set above has any"]
    lines = ["## What was not measured", "", *(f"- {gap}" for gap in (*gaps, *ALWAYS)), *(f"- unfinished, {why}" for why in unfinished)]
    return "\n".join(lines)


def _licences(about: About) -> str:
    weights = about.licence or "whose licence is its own: see where it is published"
    lines = ["## Licences", "", f"- weights: those of {about.base or about.source}, or derived from them: {weights}"]
    lines += [f"- training images, {name}: {licence or NOT_SAID}" for name, licence in (about.data or {}).items()]
    return "\n".join([*lines, "- robustclip, the program that made this folder: Apache-2.0"])
