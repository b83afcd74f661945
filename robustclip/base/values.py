"""A tree of frozen dataclasses as JSON, as a key, by dotted paths: what command line, sweep, MLflow and checkpoint all read and write."""

import dataclasses
import difflib
import hashlib
import json
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from robustclip.base.errors import UserError

RESULT_VERSION = 3  # bump by hand when the same config would give other results: finished work is then done again
NOT_FIELDS = ("type", "revision")  # what a dataclass says of itself as JSON beside its fields
T = TypeVar("T")


def to_json(value: Any, for_key: bool = False) -> Any:
    """Return a dataclass tree as JSON values; every dataclass says its type, so that unions can be read back.

    Fields marked as `loaded` hold what a file said: the file's hash beside them stands for them. A class whose results changed while its
    settings did not says its `revision`, a class variable. `for_key` leaves out fields marked as `later` while they have their default:
    work done before there was such a field is found again.
    """
    if dataclasses.is_dataclass(value):
        own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if not _left_out(f, value, for_key)}
        revision = {"revision": value.revision} if hasattr(value, "revision") else {}
        return {"type": type(value).__name__, **revision, **{name: to_json(item, for_key) for name, item in own.items()}}
    if isinstance(value, Mapping):
        return {str(key): to_json(item, for_key) for key, item in value.items()}
    return [to_json(item, for_key) for item in value] if isinstance(value, tuple | list) else value


def _left_out(field: "dataclasses.Field[Any]", node: Any, for_key: bool) -> bool:
    at_default = for_key and field.metadata.get("later") and getattr(node, field.name) == field.default
    return bool(field.metadata.get("loaded") or at_default)


def key(*parts: Any) -> str:
    """Return 16 hex digits that name the work `parts` describe: the hash of their canonical JSON and RESULT_VERSION."""
    text = json.dumps([RESULT_VERSION, *(to_json(part, for_key=True) for part in parts)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(value: Any) -> str:
    """Return 16 hex digits that name a value of plain JSON, and RESULT_VERSION."""
    return hashlib.sha256(json.dumps([RESULT_VERSION, value], sort_keys=True).encode()).hexdigest()[:16]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return every leaf of a dataclass tree by its dotted path, a union member also by its type name."""
    leaves: dict[str, Any] = {}
    for name, item in to_json(value).items() if dataclasses.is_dataclass(value) else ():
        path = f"{prefix}{name}"
        child = getattr(value, name, None)
        if dataclasses.is_dataclass(child):
            leaves |= {path: type(child).__name__} | flatten(child, f"{path}.")
        elif name not in NOT_FIELDS:
            leaves[path] = item
    return leaves


def override(config: T, changes: Mapping[str, Any]) -> T:
    """Return config with the leaves at dotted paths replaced; {"trainable": "TokenPrompt"} replaces a node by its type's default.

    Nodes are replaced before their leaves, whatever the order of `changes`, and all leaves of a node at once, so that those which depend
    on each other can change together. Raises UserError for an unknown path (with a suggestion) or a value of a wrong type.
    """
    return _replaced(config, changes, "")


def _replaced(node: Any, changes: Mapping[str, Any], prefix: str) -> Any:
    """Return the node with changes by their paths below it; `prefix` is its own path and a dot."""
    hints = typing.get_type_hints(type(node)) if dataclasses.is_dataclass(node) else {}
    fields: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        if name not in hints:
            known = [f"{prefix}{leaf}" for leaf in flatten(node)]
            near = difflib.get_close_matches(f"{prefix}{path}", known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'nothing below ' + prefix.rstrip('.')}"
            raise UserError(f"unknown recipe key {prefix + path!r}: {hint}")
        fields.setdefault(name, {})[rest] = value
    new = {}
    for name, below in fields.items():
        child = getattr(node, name)
        if "" in below:
            child = _checked(below.pop(""), hints[name], f"{prefix}{name}", child)
        new[name] = _replaced(child, below, f"{prefix}{name}.") if below else child
    return dataclasses.replace(node, **new)


def _type_name(choice: Any) -> str | None:
    return choice.__name__ if isinstance(choice, type) and dataclasses.is_dataclass(choice) else None


def _choices(hint: Any) -> tuple[Any, ...]:
    """Return what an annotation allows: the members of a union; for a class that others are made of, the dataclasses below it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(choice for member in typing.get_args(hint) for choice in _choices(member))
    made_of_it = () if _type_name(hint) else filter(dataclasses.is_dataclass, _below(hint))
    return tuple(sorted(made_of_it, key=lambda kind: kind.__name__)) or (hint,)


def _below(kind: Any) -> list[type]:
    """Return the classes below a class of ours, at any depth; of any other annotation none."""
    if not isinstance(kind, type) or kind.__module__ == "builtins":
        return []
    children: list[type] = kind.__subclasses__()
    return [each for child in children for each in (child, *_below(child))]


def _checked(value: Any, hint: Any, path: str, current: Any = None) -> Any:
    """Return the value as the annotated type: numbers become floats, lists tuples, a type's name its default (or `current`, if of it)."""
    choices = _choices(hint)
    if isinstance(value, _Word):
        try:
            return _checked(value.parsed(), hint, path, current)
        except UserError:
            if str not in choices:
                raise
            return str(value)
    for choice in choices:
        if value is not None and value == _type_name(choice):
            return current if type(current) is choice else _made(choice, {}, path)
        origin = typing.get_origin(choice)
        if choice is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value) if isinstance(value, float) or abs(value) < sys.float_info.max else math.inf
        if origin is Literal and value in typing.get_args(choice):
            return value
        kinds = typing.get_args(choice)
        if origin is tuple and isinstance(value, tuple | list) and (kinds[-1] is ... or len(kinds) == len(value)):
            return tuple(from_json(kinds[0], item, f"{path}[{i}]") for i, item in enumerate(value))
        if origin is None and isinstance(choice, type) and isinstance(value, choice) and not (choice is int and isinstance(value, bool)):
            return value
    raise UserError(f"recipe key {path!r} takes {' or '.join(map(_said, choices))}, not {value!r}")


def _said(choice: Any) -> str:
    """Return an annotation as a reader knows it: the values of a Literal, the name of a class."""
    if typing.get_origin(choice) is Literal:
        return " or ".join(map(repr, typing.get_args(choice)))
    return str(choice) if typing.get_origin(choice) else choice.__name__


def value_of(word: str) -> Any:
    """Return a word of a command line for `override`: a field takes the JSON value that it is, or its text where it takes no such value.

    So a set that is called 101 is found by `--data.name 101`, as one that is called abc by its name.
    """
    return _Word(word)


class _Word(str):
    """Text that may be meant as a JSON value."""

    def parsed(self) -> Any:
        """Return the JSON value, or the text where it is none."""
        try:
            return json.loads(self)
        except (ValueError, RecursionError):
            return {"None": None, "True": True, "False": False}.get(self, str(self))


def from_json(kind: Any, data: Any, path: str = "config") -> Any:
    """Return the dataclass tree that `to_json` wrote, read as the annotated type `kind`; raises UserError for what does not fit."""
    if isinstance(data, Mapping) and "type" in data:
        classes: dict[str | None, Any] = {_type_name(choice): choice for choice in _choices(kind)}
        if not isinstance(data["type"], str) or data["type"] not in classes:
            raise UserError(f"{path}: type {data['type']!r} is not one of {', '.join(filter(None, classes))}")
        cls = classes[data["type"]]
        hints = typing.get_type_hints(cls)
        unknown = [name for name in data if name not in hints and name not in NOT_FIELDS]
        if unknown:
            raise UserError(f"{path}: {data['type']} has no field {unknown[0]!r}")
        return _made(
            cls, {name: from_json(hints[name], item, f"{path}.{name}") for name, item in data.items() if name not in NOT_FIELDS}, path
        )
    return _checked(data, kind, path)


def _made(kind: Any, values: Mapping[str, Any], path: str) -> Any:
    """Return a dataclass of field values; raises UserError where one without a default is not among them."""
    needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING and f.name not in values]
    if needed:
        raise UserError(f"{path}: {kind.__name__} needs {', '.join(needed)}, which nothing stands for")
    return kind(**values)
