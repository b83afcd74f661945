"""What text attacks made of the prompts, read back from the files that evaluators keep, one per attack, model and set."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robustclip.base import storage


@dataclass(frozen=True)
class Found:
    """What one attack made of the prompts [P] of one model on one set: how they read clean and now, the cosine of the two [P].

    `collisions` is the share of prompts whose best candidate, had it been allowed, names another class.
    """

    dataset: str
    model: str
    attack: str
    clean: tuple[str, ...]
    texts: tuple[str, ...]
    cosines: tuple[float, ...]
    collisions: float


def folder_of(out: str, protocol_hash: str) -> str:
    """Return where the rewritten prompts of a protocol lie."""
    return storage.join(out, "prompts", protocol_hash)


def read_all(out: str, protocol_hash: str, models: Mapping[str, str]) -> list[Found]:
    """Return what was kept of a protocol for `models` (their sha256 -> what they are called), in a fixed order."""
    found = []
    for path in storage.list_files(folder_of(out, protocol_hash), ".json"):
        said = storage.read_json(path)
        name, _, about = said["attack"]
        if said["model_sha256"] in models:
            title = name + (f", {about['ball']}" if "ball" in about else "")
            clean, texts, cosines = (tuple(said[each]) for each in ("clean", "texts", "cosines"))
            found.append(Found(said["dataset"], models[said["model_sha256"]], title, clean, texts, cosines, float(said["collisions"])))
    return sorted(found, key=lambda each: (each.dataset, each.model, each.attack))


def as_csv(found: Sequence[Found]) -> str:
    """Return one line per prompt: set, model, attack, the clean prompt, what it became, and the cosine between the two."""
    writer = csv.writer(text := io.StringIO(), lineterminator="\n")
    writer.writerow(("set", "model", "attack", "prompt", "attacked prompt", "cosine"))
    for each in found:
        for clean, now, cosine in zip(each.clean, each.texts, each.cosines, strict=True):
            writer.writerow((each.dataset, each.model, each.attack, clean, now, f"{cosine:.4f}"))
    return text.getvalue()
