"""A model under a test-time defence, by name: KIND[setting=value,...]:MODEL."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.models import model as models
from robustclip.models.adaptive import Adaptive
from robustclip.models.model import Model
from robustclip.test_time import TEST_TIME, TestTime
from robustclip.training.config import override, to_json, value_of

NAME = re.compile(rf"({'|'.join(TEST_TIME)})(?:\[([^\]]*)\])?:(.+)")


@dataclass(frozen=True)
class AtTestTime:
    """`settings` of the defence `kind` over the `inner` model; raises UserError for settings that it does not have."""

    kind: str
    settings: TestTime
    inner: str

    def load(self) -> "AdaptiveModel":
        """Return the model that adapts; raises UserError for a combination of several models: each adapts on its own."""
        inner = models.load(self.inner)
        if type(inner) is not Model:
            raise UserError(f"{self.kind} adapts a single model, and {self.inner} is a combination or adapts already")
        own = {field.name: getattr(inner, field.name) for field in fields(inner)}
        return AdaptiveModel(**{**own, "name": f"{self.kind}:{self.inner}"}, defence=self.settings)

    def files(self) -> dict[str, str]:
        """Return the sha256 of every file that the settings name."""
        paths = {name: getattr(self.settings, name, "") for name in ("adversarial", "clean")}
        missing = [path for path in paths.values() if path and not storage.exists(storage.resolve(path))]
        if missing:
            raise UserError(f"{self.kind}: there is no file {missing[0]}: make it with pipelines/moments.py")
        return {name: storage.sha256_file(storage.resolve(path)) for name, path in paths.items() if path}

    def _said(self) -> dict[str, object]:
        """Return the settings with the hashes of files in place of where they lie."""
        return {**to_json(self.settings), **self.files()}

    def _judge(self) -> list[str]:
        """Return the hash of the CLIP that a defence asks beside its own, where it does and there is another."""
        path = storage.join(self.inner, "config.json")
        base = storage.read_json(path).get("base") if self.kind == "ttc" and storage.exists(path) else None
        return [base["sha256"]] if base else []

    def identity(self) -> str:
        """Return the hash of the settings, of the files they name and of what the inner model, and one it asks, are told by."""
        parts = [self.kind, self._said(), models.identity(self.inner), *self._judge()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def display_name(self) -> str:
        """Return e.g. tpt[views=16]-tiny-vit8: what is not the default, of files the first digits of their hashes."""
        usual = to_json(TEST_TIME[self.kind])
        other = {name: value for name, value in self._said().items() if value != usual[name]}
        said = ",".join(f"{name}={value[:8] if isinstance(value, str) else value}" for name, value in other.items())
        return f"{self.kind}{f'[{said}]' if said else ''}-{models.display_name(self.inner)}"

    def selection(self) -> frozenset[str] | None:
        """Return the ids that training and choosing the inner model saw."""
        return models.selection(self.inner)

    def input_size(self) -> int:
        """Return the side of its images."""
        return models.input_size(self.inner)


@dataclass(frozen=True)
class AdaptiveModel(Model):
    """A model whose classifiers adapt to every image."""

    adapts = True
    defence: TestTime = TEST_TIME["views"]

    def classifier(self, class_names: Sequence[str], templates: Sequence[str]) -> Adaptive:  # type: ignore[override]
        """Return the adapting classifier over `class_names`; raises UserError where the defence does not fit the model."""
        made = self.defence.classifier(super().classifier(class_names, templates), seed=0)
        return (made.told(lambda: models.origin(self).classifier(class_names, templates)) if self.card.get("base") else made).eval()

    def copy(self) -> "AdaptiveModel":
        """Return a model with weights of its own."""
        return replace(self, **vars(super().copy()))


def written(settings: TestTime, inner: str) -> str:
    """Return the name of a model under a defence: what `named` reads."""
    kind = next(kind for kind, usual in TEST_TIME.items() if type(usual) is type(settings))
    other = {name: value for name, value in to_json(settings).items() if value != getattr(TEST_TIME[kind], name, value)}
    said = ",".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in other.items())
    return f"{kind}{f'[{said}]' if said else ''}:{inner}"


def named(name: str) -> AtTestTime | None:
    """Return the defended model that a name stands for, None for another name; raises UserError for settings that do not fit."""
    found = NAME.fullmatch(name)
    if found is None:
        return None
    kind, settings, inner = found.groups()
    pairs = [pair.partition("=") for pair in (settings or "").split(",") if pair]
    if bad := [pair for pair in pairs if not pair[1]]:
        raise UserError(f"{name}: settings are written {kind}[name=value,...]:MODEL, not {bad[0][0]!r}")
    return AtTestTime(kind, override(TEST_TIME[kind], {key: value_of(value) for key, _, value in pairs}), inner)
