"""One model by its name: a checkpoint folder, an embedded model, one of open_clip's zoo."""

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from robustclip.base import storage
from robustclip.base.errors import UserError, did_you_mean
from robustclip.models import checkpoints, folders, zoo
from robustclip.models.model import Model

log = logging.getLogger(__name__)


class Named(Protocol):
    """What a name stands for, by the functions of these names in this package; `str` of it is the name as it is found from anywhere."""

    def load(self) -> Model: ...
    def identity(self) -> str: ...
    def display_name(self) -> str: ...
    def selection(self) -> frozenset[str] | None: ...
    def input_size(self) -> int: ...
    def folders(self) -> list[str]: ...


@dataclass(frozen=True)
class Single:
    """A single model by the one way to write its name."""

    name: str

    def __str__(self) -> str:
        return self.name


class Folder(Single):
    """A folder by its path from the root: a checkpoint, a model of open_clip or of transformers; or an embedded model.

    Records call a run's checkpoint run-<key>.
    """

    @classmethod
    def of(cls, name: str) -> "Folder":
        """Return the embedded model of that name, whatever lies in the working folder, else the folder at that path."""
        if name not in checkpoints.embedded():
            return cls(storage.resolve(name))
        if checkpoints.card(storage.resolve(name)):
            warn_of_shadow(name)
        return cls(name)

    @property
    def folder(self) -> str:
        return str(checkpoints.embedded().get(self.name, self.name))

    def card(self) -> dict[str, Any]:
        """Return what the folder says of its model, {} where none is complete."""
        return checkpoints.card(self.folder)

    def load(self) -> Model:
        if other := folders.of(self.folder):
            return other.load(self.name)
        if not self.card():
            known = checkpoints.embedded()
            raise UserError(
                f"no model {self.name!r}{did_you_mean(storage.name_of(self.name), known)}: give an embedded one ({', '.join(known)}), "
                f"{zoo.ZOO}NAME/TAG, or a folder"
            )
        return checkpoints.load(self.name, self.folder)

    def identity(self) -> str:
        other = folders.of(self.folder)
        return other.identity() if other else checkpoints.identity(self.folder) or self.load().sha256  # or says what is wrong

    def display_name(self) -> str:
        about = {} if self.name in checkpoints.embedded() else self.card()
        return f"run-{about['run']}" if "run" in about else storage.name_of(self.name)

    def selection(self) -> frozenset[str] | None:
        return checkpoints.selection(self.folder)

    def input_size(self) -> int:
        if other := folders.of(self.folder):
            return other.input_size
        return checkpoints.input_size(self.folder) if self.card() else self.load().preprocess.size  # or says what is wrong

    def folders(self) -> list[str]:
        return [self.folder]


class OfZoo(Single):
    """A model of open_clip's zoo, which says of itself no more than its name."""

    def load(self) -> Model:
        return zoo.load(self.name)

    def identity(self) -> str:
        return zoo.identity(self.name)

    def display_name(self) -> str:
        return self.name

    def selection(self) -> frozenset[str] | None:
        return None

    def input_size(self) -> int:
        return self.load().preprocess.size

    def folders(self) -> list[str]:
        return []


@cache
def warn_of_shadow(name: str) -> None:
    """Say once in a process which of two the name means."""
    log.warning("%s is the embedded model; for the checkpoint in the folder of that name here write ./%s", name, name)
