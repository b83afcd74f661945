"""What stands for a class in front of a text tower: its name in templates that all classes share, or descriptions of its own."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.texts import read_texts

SHOWN = 5  # names or pairs that a sentence names; it counts the others


@dataclass(frozen=True)
class Descriptions:
    """Texts of each class in the place of its name in templates, from JSON {class name: [texts]}; `sha256` is that of what the file says.

    Where the file lies, what it is called and how it is laid out decide nothing. Classes may have different numbers of texts.
    """

    sha256: str
    texts: Mapping[str, tuple[str, ...]] = field(repr=False, compare=False, metadata={"loaded": True})
    file: str = field(default="descriptions", compare=False, metadata={"loaded": True})

    @classmethod
    def said(cls, texts: Mapping[str, Sequence[str]], file: str = "descriptions") -> "Descriptions":
        """Return the descriptions that a mapping says, with the hash of it."""
        known = {name: tuple(each) for name, each in texts.items()}
        return cls(hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest(), known, file)

    @classmethod
    def read(cls, path: str) -> "Descriptions":
        """Return the descriptions of a file; raises UserError for one that cannot be read or says something else."""
        return cls.said(read_texts(path, "descriptions", "class name"), storage.name_of(path))

    def of(self, class_names: Sequence[str], where: str = "") -> tuple[tuple[str, ...], ...]:
        """Return the texts of every class, in order; raises UserError that names those without any, and `where` they are asked for."""
        if missing := [repr(name) for name in class_names if not self.texts.get(name)]:
            raise UserError(
                f"{f'{where}: ' if where else ''}{self.file} describes {len(class_names) - len(missing)} of {len(class_names)} classes; it "
                f"has no text of {some(missing)}: add one or more under exactly this name"
            )
        return tuple(self.texts[name] for name in class_names)


Templates = Sequence[str] | Descriptions  # each template with {} once, where the class name goes


def texts_of(class_names: Sequence[str], templates: Templates) -> tuple[tuple[str, ...], ...]:
    """Return the texts of every class, in order; raises UserError for a class that has none."""
    if isinstance(templates, Descriptions):
        return templates.of(class_names)
    return tuple(tuple(template.format(name) for template in templates) for name in class_names)


def value_of(templates: Templates) -> tuple[str, ...] | Descriptions:
    """Return templates as a value that can be compared and hashed."""
    return templates if isinstance(templates, Descriptions) else tuple(templates)


def as_json(class_names: Sequence[str], templates: Templates) -> list[Any]:
    """Return what cards and protocols say of them: the templates, or every class's texts."""
    return [list(each) for each in templates.of(class_names)] if isinstance(templates, Descriptions) else list(templates)


def listed(templates: Templates) -> list[str]:
    """Return what findings call them: the templates, or the title of descriptions."""
    return [title(templates)] if isinstance(templates, Descriptions) else list(templates)


def title(templates: Templates) -> str:
    """Return what tables call them: a single template by itself, several and descriptions by the first digits of their hash."""
    if isinstance(templates, Descriptions):
        return f"descriptions {templates.sha256[:8]}"
    if len(templates) == 1:
        return templates[0]
    return f"{len(templates)} templates {hashlib.sha256(json.dumps(list(templates)).encode()).hexdigest()[:8]}"


def some(words: Sequence[str]) -> str:
    """Return the first words, and how many there are besides."""
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return f"{', '.join(words[:SHOWN])}{more}"
