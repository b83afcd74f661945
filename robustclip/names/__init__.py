"""Models by name: loading, and what is known of one without loading it.

A checkpoint folder, an embedded model, `open_clip:NAME/TAG`; two as one, `interpolate:ALPHA:CHECKPOINT`, `ensemble:A,B`, `towers:A,B`; or
one under a test-time defence, `KIND[setting=value,...]:MODEL`. Names are read here alone: what combines or defends takes models.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Protocol

from robustclip.base import storage
from robustclip.base.errors import UserError, did_you_mean
from robustclip.base.values import override, to_json, value_of
from robustclip.models import checkpoints, zoo
from robustclip.models.combined import hash_of, interpolated, together, two_towers
from robustclip.models.model import Model
from robustclip.test_time import TEST_TIME, TestTime
from robustclip.test_time.defended import AdaptiveModel

INTERPOLATE, ENSEMBLE, TOWERS = "interpolate:", "ensemble:", "towers:"
DEFENDED = re.compile(rf"({'|'.join(TEST_TIME)})(?:\[([^\]]*)\])?:(.+)")


class Named(Protocol):
    """What a name stands for, by the functions of these names below; nothing but `load` builds the model of a folder."""

    def load(self) -> Model: ...
    def identity(self) -> str: ...
    def display_name(self) -> str: ...
    def selection(self) -> frozenset[str] | None: ...
    def input_size(self) -> int: ...


@dataclass(frozen=True)
class Single:
    """A checkpoint folder, an embedded model by its name, or one of open_clip's zoo; records call a run's checkpoint run-<key>."""

    name: str

    @property
    def folder(self) -> str:
        return str(checkpoints.embedded().get(self.name, self.name))

    def load(self) -> Model:
        if self.name.startswith(zoo.ZOO):
            return zoo.load(self.name)
        if not checkpoints.card(self.folder):
            known = checkpoints.embedded()
            raise UserError(
                f"no model {self.name!r}{did_you_mean(self.name, known)}: give an embedded one ({', '.join(known)}), {zoo.ZOO}NAME/TAG, "
                "or a folder"
            )
        return checkpoints.load(self.name, self.folder)

    def identity(self) -> str:
        known = None if self.name.startswith(zoo.ZOO) else checkpoints.identity(self.folder)
        return known or self.load().sha256  # or says what is wrong

    def display_name(self) -> str:
        if self.name.startswith(zoo.ZOO) or self.name in checkpoints.embedded():
            return self.name
        about = checkpoints.card(self.folder)
        return f"run-{about['run']}" if "run" in about else storage.name_of(self.name)

    def selection(self) -> frozenset[str] | None:
        return checkpoints.selection(self.name)

    def input_size(self) -> int:
        if self.name.startswith(zoo.ZOO) or not checkpoints.card(self.folder):
            return self.load().preprocess.size
        return checkpoints.input_size(self.folder)


@dataclass(frozen=True)
class Around:
    """What is made of the `inner` model, and saw the images that it saw."""

    inner: str

    def selection(self) -> frozenset[str] | None:
        return selection(self.inner)

    def input_size(self) -> int:
        return input_size(self.inner)


@dataclass(frozen=True)
class Interpolation(Around):
    """`interpolate:ALPHA:CHECKPOINT`: the share `alpha` of the way from the base that the checkpoint's card names to the checkpoint."""

    alpha: float

    def __post_init__(self) -> None:
        _refuse_nested(self.inner)
        if not self.inner or self.inner.startswith(zoo.ZOO):
            raise UserError(f"{INTERPOLATE}ALPHA:CHECKPOINT needs the folder of a fine-tuned model, not {self.inner!r}")

    def base(self) -> dict[str, str]:
        """Return name and sha256 of what the checkpoint was fine-tuned from; raises UserError where no tower was, or it names no base."""
        for file, what in checkpoints.WORN.items():
            if storage.exists(storage.join(self.inner, file)):
                raise UserError(f"{self.inner} trained {what} on its base's own visual tower: there is nothing to interpolate")
        about = checkpoints.card(self.inner) or load(self.inner).card  # or says what is wrong
        base = about.get("base") or {}
        if not {"name", "sha256"} <= base.keys():
            raise UserError(
                f"{self.inner}: its config.json names no base, the model it was fine-tuned from, so there is nothing to interpolate "
                "with: give a checkpoint that robustclip train wrote"
            )
        return base

    def load(self) -> Model:
        card, tuned = self.base(), load(self.inner)
        if (found := identity(card["name"])) != card["sha256"]:
            raise UserError(
                f"{self.inner} was fine-tuned from {card['name']} with sha256 {card['sha256'][:12]}..., what is there now has "
                f"{found[:12]}...: put the old weights back"
            )
        return interpolated(load(card["name"]), tuned, self.alpha, f"{INTERPOLATE}{self.alpha}:{self.inner}")

    def identity(self) -> str:
        return hash_of("interpolate", self.alpha, self.base()["sha256"], identity(self.inner))

    def display_name(self) -> str:
        return f"interpolate-{self.alpha}-{display_name(self.inner)}"


@dataclass(frozen=True)
class Two:
    """Two different names of single models; raises UserError for anything else."""

    parts: tuple[str, ...]
    prefix: ClassVar[str]

    def __post_init__(self) -> None:
        if len(self.parts) != 2 or not all(self.parts) or self.parts[0] == self.parts[1]:
            raise UserError(f"{self}: it is of two different models, written {self.prefix}A,B")
        for part in self.parts:
            _refuse_nested(part)

    def __str__(self) -> str:
        return f"{self.prefix}{','.join(self.parts)}"

    def display_name(self) -> str:
        return f"{self.prefix.removesuffix(':')}-{'+'.join(map(display_name, self.parts))}"

    def selection(self) -> frozenset[str] | None:
        known = [ids for part in self.parts if (ids := selection(part)) is not None]
        return frozenset().union(*known) if known else None


@dataclass(frozen=True)
class TwoTowers(Two):
    """`towers:A,B`: the visual tower of A with the text tower of B; both fine-tuned from one model, or one is it."""

    prefix = TOWERS

    def load(self) -> Model:
        image, text = map(load, self.parts)
        origins = {part: model.card.get("base", {}).get("sha256", identity(part)) for part, model in zip(self.parts, (image, text))}
        if len(set(origins.values())) > 1:
            said = ", ".join(f"{part} from {sha256[:12]}..." for part, sha256 in origins.items())
            raise UserError(f"{self}: two towers understand each other only if one model was before both; {said}")
        return two_towers(image, text, str(self))

    def identity(self) -> str:
        return hash_of("towers", *map(identity, self.parts))

    def input_size(self) -> int:
        return input_size(self.parts[0])


@dataclass(frozen=True)
class Ensemble(Two):
    """`ensemble:A,B`: one classifier whose logits are the mean of two models', each with its own preprocessing, prompt and text tower."""

    prefix = ENSEMBLE

    def load(self) -> Model:
        return together(str(self), [load(part) for part in self.parts])

    def identity(self) -> str:
        return hash_of("ensemble", *sorted(map(identity, self.parts)))  # in either order: a mean has none

    def input_size(self) -> int:
        return max(map(input_size, self.parts))


@dataclass(frozen=True)
class AtTestTime(Around):
    """`KIND[setting=value,...]:MODEL`: `settings` of the defence `kind` over the inner model."""

    kind: str
    settings: TestTime

    def load(self) -> AdaptiveModel:
        """Return the model that adapts; raises UserError for a combination of several models: each adapts on its own."""
        inner = load(self.inner)
        if type(inner) is not Model:
            raise UserError(f"{self.kind} adapts a single model, and {self.inner} is a combination or adapts already")
        own = {field.name: getattr(inner, field.name) for field in fields(inner)} | {"name": f"{self.kind}:{self.inner}"}
        return AdaptiveModel(**own, defence=self.settings, began_as=partial(origin, inner) if inner.card.get("base") else None)

    def _said(self) -> dict[str, Any]:
        """Return the settings with the hashes of files in place of where they lie; raises UserError for a file that is not there."""
        said = to_json(self.settings)
        for field in ("adversarial", "clean"):
            if path := getattr(self.settings, field, ""):
                if not storage.exists(storage.resolve(path)):
                    raise UserError(f"{self.kind}: there is no file {path}: make it with robustclip moments")
                said[field] = storage.sha256_file(storage.resolve(path))
        return said

    def identity(self) -> str:
        """Return the hash of the settings, of the files they name and of what the inner model, and a CLIP it asks beside, are told by."""
        base = checkpoints.card(self.inner).get("base") if getattr(self.settings, "asks_original", False) else None
        parts = [self.kind, self._said(), identity(self.inner), *([base["sha256"]] if base else [])]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def display_name(self) -> str:
        """Return e.g. tpt[views=16]-tiny-vit8: what is not the default, of files the first digits of their hashes."""
        usual = to_json(TEST_TIME[self.kind])
        other = {name: value for name, value in self._said().items() if value != usual[name]}
        said = ",".join(f"{name}={value[:8] if isinstance(value, str) else value}" for name, value in other.items())
        return f"{self.kind}{f'[{said}]' if said else ''}-{display_name(self.inner)}"


def parse(name: str) -> Named:
    """Return what a name stands for; raises UserError for one cut short and for settings that a test-time defence does not have."""
    if found := DEFENDED.fullmatch(name):
        kind, settings, inner = found.groups()
        pairs = [pair.partition("=") for pair in (settings or "").split(",") if pair]
        if bad := [pair for pair in pairs if not pair[1]]:
            raise UserError(f"{name}: settings are written {kind}[name=value,...]:MODEL, not {bad[0][0]!r}")
        return AtTestTime(inner, kind, override(TEST_TIME[kind], {key: value_of(value) for key, _, value in pairs}))
    if name.startswith(INTERPOLATE):
        alpha, _, checkpoint = name.removeprefix(INTERPOLATE).partition(":")  # a URI has colons of its own
        return Interpolation(checkpoint, _share(alpha))
    if name.startswith(TOWERS):
        return TwoTowers(tuple(name.removeprefix(TOWERS).split(",")))
    return Ensemble(tuple(name.removeprefix(ENSEMBLE).split(","))) if name.startswith(ENSEMBLE) else Single(name)


def _share(text: str) -> float:
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not 0 <= alpha <= 1:
        raise UserError(f"{INTERPOLATE}ALPHA:CHECKPOINT: ALPHA is a number from 0 (the base) to 1 (the checkpoint), not {text!r}")
    return alpha


def _refuse_nested(part: str) -> None:
    if part.startswith((INTERPOLATE, ENSEMBLE, TOWERS)):
        raise UserError(f"{part} is a combination, and combinations do not nest: name single models")


def written(settings: TestTime, inner: str) -> str:
    """Return the name of a model under a defence: what `parse` reads."""
    kind = next(kind for kind, usual in TEST_TIME.items() if type(usual) is type(settings))
    other = {name: value for name, value in to_json(settings).items() if value != getattr(TEST_TIME[kind], name, value)}
    said = ",".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in other.items())
    return f"{kind}{f'[{said}]' if said else ''}:{inner}"


def load(name: str) -> Model:
    """Return the model that a name stands for; raises UserError for anything else, and for weights that do not fit their config."""
    return parse(name).load()


def identity(name: str) -> str:
    """Return the hash that names the model in keys and records, without building a folder's model."""
    return parse(name).identity()


def display_name(name: str) -> str:
    """Return how records and tables call a model."""
    return parse(name).display_name()


def selection(name: str) -> frozenset[str] | None:
    """Return the ids of the images that training and choosing a model saw, None where it does not say."""
    return parse(name).selection()


def input_size(name: str) -> int:
    """Return the side of the images a model works on, from its config alone where there is one."""
    return parse(name).input_size()


def origin(model: Model) -> Model:
    """Return the model that all fine-tuning of this one began with, itself where there was none."""
    while base := model.card.get("base"):
        model = load(base["name"])
    return model
