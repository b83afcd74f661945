"""What text attacks made of a model's prompts, kept as one file per attack: computed once for all cells, and there to be looked at."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustclip.base import storage

FIELDS = ("clean", "texts", "cosines", "collisions")


@dataclass(frozen=True)
class Rewritten:
    """What became of the prompts [P] of a classifier, class by class: how they read now, and cos(clean, now) of each [P].

    `collisions` is the share of prompts whose best candidate, had it been allowed, names another class.
    """

    clean: tuple[str, ...]
    texts: tuple[str, ...]
    cosines: tuple[float, ...]
    collisions: float


def folder_of(out: str, protocol_hash: str) -> str:
    """Return where the rewritten prompts of a protocol lie."""
    return storage.join(out, "prompts", protocol_hash)


@dataclass(frozen=True)
class Kept(MutableMapping[str, Rewritten]):
    """The rewritten prompts of one model on one set, by attack; `about` names the two: model_sha256 and dataset.

    Written atomically, so two workers that compute the same one do no harm: they compute the same.
    """

    out: str
    protocol_hash: str
    about: dict[str, str]
    _seen: dict[str, Rewritten] = field(default_factory=dict, repr=False)

    def path(self, name: str) -> str:
        """Return the file of an attack."""
        from robustclip.training.config import key  # which brings torch, that reading does not need

        return storage.join(folder_of(self.out, self.protocol_hash), f"{key(self.about, name)}.json")

    def __getitem__(self, name: str) -> Rewritten:
        if name not in self._seen:
            if not storage.exists(self.path(name)):
                raise KeyError(name)
            self._seen[name] = _rewritten(storage.read_json(self.path(name)))
        return self._seen[name]

    def __setitem__(self, name: str, value: Rewritten) -> None:
        said = {each: getattr(value, each) for each in FIELDS}
        storage.write_json(self.path(name), self.about | {"attack": json.loads(name)} | said)
        self._seen[name] = value

    def __delitem__(self, name: str) -> None:
        raise TypeError("what was computed is kept")

    def __iter__(self) -> Iterator[str]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)


@dataclass(frozen=True)
class Found:
    """What one attack made of one model's prompts on one set."""

    dataset: str
    model: str
    attack: str
    rewritten: Rewritten


def read_all(out: str, protocol_hash: str, models: Mapping[str, str]) -> list[Found]:
    """Return what was kept of a protocol for `models` (their sha256 -> what they are called), in a fixed order."""
    found = []
    for path in storage.list_files(folder_of(out, protocol_hash), ".json"):
        said = storage.read_json(path)
        name, _, about = said["attack"]
        if said["model_sha256"] in models:
            title = name + (f", {about['ball']}" if "ball" in about else "")
            found.append(Found(said["dataset"], models[said["model_sha256"]], title, _rewritten(said)))
    return sorted(found, key=lambda each: (each.dataset, each.model, each.attack))


def _rewritten(said: Mapping[str, Any]) -> Rewritten:
    return Rewritten(tuple(said["clean"]), tuple(said["texts"]), tuple(said["cosines"]), float(said["collisions"]))


def as_csv(found: Sequence[Found]) -> str:
    """Return one line per prompt: set, model, attack, the clean prompt, what it became, and the cosine between the two."""
    writer = csv.writer(text := io.StringIO(), lineterminator="\n")
    writer.writerow(("set", "model", "attack", "prompt", "attacked prompt", "cosine"))
    for each in found:
        for clean, now, cosine in zip(each.rewritten.clean, each.rewritten.texts, each.rewritten.cosines, strict=True):
            writer.writerow((each.dataset, each.model, each.attack, clean, now, f"{cosine:.4f}"))
    return text.getvalue()
