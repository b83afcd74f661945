"""What a name stands for, and the model that a checkpoint's card names as its base: what is read out of text."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.values import override, to_json, value_of
from robustclip.models import checkpoints, zoo
from robustclip.models.combined import hash_of, interpolated
from robustclip.models.model import Model
from robustclip.names.several import ENSEMBLE, TOWERS, Ensemble, TwoTowers
from robustclip.names.single import Folder, Named, OfZoo
from robustclip.test_time import TEST_TIME, TestTime
from robustclip.test_time.defended import AdaptiveModel

INTERPOLATE = "interpolate:"
DEFENDED = re.compile(rf"({'|'.join(TEST_TIME)})(?:\[([^\]]*)\])?:(.+)")
FILES = ("adversarial", "clean")  # settings of test-time defences that name a file


@dataclass(frozen=True)
class Over:
    """A name over one `inner` model, which is asked for what the name does not change."""

    inner: Named

    def selection(self) -> frozenset[str] | None:
        return self.inner.selection()

    def input_size(self) -> int:
        return self.inner.input_size()

    def folders(self) -> list[str]:
        return self.inner.folders()


@dataclass(frozen=True)
class Interpolation(Over):
    """`interpolate:ALPHA:CHECKPOINT`: the share `alpha` of the way from the base that the checkpoint's card names to the checkpoint."""

    inner: Folder
    alpha: float

    def __str__(self) -> str:
        return f"{INTERPOLATE}{self.alpha}:{self.inner}"

    def card(self) -> dict[str, Any]:
        """Return the checkpoint's card; raises UserError where it trained no tower, or names no base with the base's hash."""
        for file, what in checkpoints.WORN.items():
            if storage.exists(storage.join(self.inner.folder, file)):
                raise UserError(f"{self.inner} trained {what} on its base's own visual tower: there is nothing to interpolate")
        card = self.inner.card() or dict(self.inner.load().card)  # or says what is wrong
        if not {"name", "sha256"} <= (card.get("base") or {}).keys():
            raise UserError(
                f"{self.inner}: its config.json names no base, the model it was fine-tuned from, so there is nothing to interpolate "
                "with: give a checkpoint that robustclip train wrote"
            )
        return card

    def load(self) -> Model:
        base = base_of(self.card(), str(self.inner))
        assert base is not None  # or the card was refused
        return interpolated(base.load(), self.inner.load(), self.alpha, str(self))

    def identity(self) -> str:
        return hash_of("interpolate", self.alpha, self.card()["base"]["sha256"], self.inner.identity())

    def display_name(self) -> str:
        return f"interpolate-{self.alpha}-{self.inner.display_name()}"


@dataclass(frozen=True)
class AtTestTime(Over):
    """`KIND[setting=value,...]:MODEL`: `settings` of the defence `kind` over the inner model."""

    kind: str
    settings: TestTime

    def __str__(self) -> str:
        return written(self.settings, str(self.inner))

    def load(self) -> AdaptiveModel:
        """Return the model that adapts; raises UserError for a combination of several models: each adapts on its own."""
        inner = self.inner.load()
        if type(inner) is not Model:
            raise UserError(f"{self.kind} adapts a single model, and {self.inner} is a combination or adapts already")
        own = {field.name: getattr(inner, field.name) for field in fields(inner)} | {"name": f"{self.kind}:{self.inner}"}
        return AdaptiveModel(**own, defence=self.settings, began_as=partial(origin, inner) if inner.card.get("base") else None)

    def _said(self) -> dict[str, Any]:
        """Return the settings with the hashes of files in place of where they lie; raises UserError for a file that is not there."""
        said = to_json(self.settings)
        for field in FILES:
            if path := getattr(self.settings, field, ""):
                if not storage.exists(path):
                    raise UserError(f"{self.kind}: there is no file {path}: make it with robustclip moments")
                said[field] = storage.known_sha256(path)
        return said

    def identity(self) -> str:
        """Return the hash of the settings, of the files they name and of what the inner model, and a CLIP it asks beside, are told by."""
        asks = getattr(self.settings, "asks_original", False)
        base = self.inner.card().get("base") if asks and isinstance(self.inner, Folder) else None
        parts = [self.kind, self._said(), self.inner.identity(), *([base["sha256"]] if base else [])]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def display_name(self) -> str:
        """Return e.g. tpt[views=16]-tiny-vit8: what is not the default, of files the first digits of their hashes."""
        usual = to_json(TEST_TIME[self.kind])
        other = {name: value for name, value in self._said().items() if value != usual[name]}
        said = ",".join(f"{name}={value[:8] if isinstance(value, str) else value}" for name, value in other.items())
        return f"{self.kind}{f'[{said}]' if said else ''}-{self.inner.display_name()}"


def parse(name: str) -> Named:
    """Return what a name stands for; raises UserError for one cut short and for settings that a test-time defence does not have."""
    if found := DEFENDED.fullmatch(name):
        kind, said, inner = found.groups()
        pairs = [pair.partition("=") for pair in (said or "").split(",") if pair]
        if bad := [pair for pair in pairs if not pair[1]]:
            raise UserError(f"{name}: settings are written {kind}[name=value,...]:MODEL, not {bad[0][0]!r}")
        settings = override(TEST_TIME[kind], {key: value_of(value) for key, _, value in pairs})
        return AtTestTime(parse(inner), kind, located(settings))
    if name.startswith(INTERPOLATE):
        said, _, checkpoint = name.removeprefix(INTERPOLATE).partition(":")  # a URI has colons of its own
        alpha, inner = _share(said), _part(checkpoint) if checkpoint else None
        if not isinstance(inner, Folder):
            raise UserError(f"{INTERPOLATE}ALPHA:CHECKPOINT needs the folder of a fine-tuned model, not {checkpoint!r}")
        return Interpolation(inner, alpha)
    for prefix, kind in ((ENSEMBLE, Ensemble), (TOWERS, TwoTowers)):
        if name.startswith(prefix):
            words = name.removeprefix(prefix).split(",")
            if len(words) != 2 or not all(words):
                raise UserError(f"{name}: {kind.written()}")
            return kind(tuple(map(_part, words)))
    return single(name)


def single(name: str) -> Folder | OfZoo:
    """Return a single model: of the zoo, embedded, or else a folder."""
    if not name:
        raise UserError("a model's name is empty: give a folder, an embedded name, or what robustclip list shows")
    return OfZoo(zoo.absolute(name)) if name.startswith(zoo.ZOO) else Folder.of(name)


def _share(text: str) -> float:
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not 0 <= alpha <= 1:
        raise UserError(f"{INTERPOLATE}ALPHA:CHECKPOINT: ALPHA is a number from 0 (the base) to 1 (the checkpoint), not {text!r}")
    return alpha


def _part(part: str) -> Named:
    if part.startswith((INTERPOLATE, ENSEMBLE, TOWERS)):
        raise UserError(f"{part} is a combination, and combinations do not nest: name single models")
    return parse(part)


def located(settings: TestTime) -> TestTime:
    """Return the settings with the paths of their files from the root."""
    return override(settings, {name: storage.resolve(path) for name in FILES if (path := getattr(settings, name, ""))})


def written(settings: TestTime, inner: str) -> str:
    """Return the name of a model under a defence: what `parse` reads."""
    kind = next(kind for kind, usual in TEST_TIME.items() if type(usual) is type(settings))
    other = {name: value for name, value in to_json(settings).items() if value != getattr(TEST_TIME[kind], name, value)}
    said = ",".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in other.items())
    return f"{kind}{f'[{said}]' if said else ''}:{inner}"


def base_of(card: Mapping[str, Any], asked: str) -> Named | None:
    """Return the model that the card of the model `asked` names as its base, None where it names none.

    The hash decides, the place comes second: an embedded model, what has the name, or a folder that was moved together with that of
    `asked`, whichever has the base's hash. Raises UserError that names who asks where none has.
    """
    base = card.get("base")
    if not base:
        return None
    name, sha256 = base["name"], base.get("sha256")
    named = parse(name)
    if sha256 is None:
        return named
    beside = [Folder(path) for folder in parse(asked).folders() if (path := beside_of(folder, name))]
    for each in (*map(Folder, checkpoints.embedded()), named, *beside):
        if is_of_hash(each, sha256):
            return each
    try:
        there = f"has {named.identity()[:12]}..."
    except UserError as error:
        there = f"cannot be had ({error})"
    also = f", or into {beside[0]}" if beside else ""
    raise UserError(
        f"{asked} was fine-tuned from {name} with sha256 {sha256[:12]}..., as its config.json says, and what is there now {there}: put "
        f"the old weights back{also}"
    )


def beside_of(folder: str, base: str) -> str | None:
    """Return where a base lies now if its checkpoint, now at `folder`, was moved together with it: runs/KEY/model beside runs/KEY/model."""
    last = base.rstrip("/").split("/")[-2:]
    return storage.join(storage.parent_of(storage.parent_of(folder)), *last) if len(last) == 2 and not base.startswith(zoo.ZOO) else None


def is_of_hash(named: Named, sha256: str) -> bool:
    """Return whether a model is there and is the one of a hash: its identity, or that of the weights of a model of the zoo alone."""
    try:
        return named.identity() == sha256 or (isinstance(named, OfZoo) and named.load().sha256 == sha256)
    except UserError:
        return False


def origin(model: Model) -> Model:
    """Return the model that all fine-tuning of this one began with, itself where there was none."""
    while base := base_of(model.card, model.name):
        model = base.load()
    return model
