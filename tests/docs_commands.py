"""What a command on a page must be: parsed by the parser of what it runs, and every name in it there. Nothing is run."""

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import docs_tools
from docs_pages import PAGES, ROOT, commands
from docs_tools import Wrong, is_placeholder, parsed, refusals

REDIRECTION = re.compile(r"(?<=\s)\d?>&?\s*\S+")
SEPARATORS = {"&&", "||", ";", "|", "{", "}"}


def check(text: str) -> None:
    """Raise Wrong for a command line that would fail before it does anything."""
    lexer = shlex.shlex(REDIRECTION.sub("", text), posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word not in SEPARATORS:
            words.append(word)
            continue
        while words and re.match(r"\w+=", words[0]):
            words.pop(0)
        if words:
            _simple(words)
        words = []


def _simple(words: Sequence[str]) -> None:
    """Check one command without its shell."""
    if re.fullmatch(r"(pipelines|benchmarks)/\w+\.py", words[0]):
        return _script(words[0], list(words[1:]))
    first = re.sub(r"^\.(venv|uv)/bin/", "", words[0])
    if first not in CHECKED:
        raise Wrong(f"{first!r}: nobody checks such a command; teach tests/docs_commands.py to")
    return CHECKED[first](list(words[1:]))


def _python(words: list[str]) -> None:
    if words[:1] == ["-m"]:
        if words[1] == "pytest":
            return docs_tools.pytest_(words[2:])
        if words[1] != "venv" and not (ROOT / words[1] / "__main__.py").is_file():
            raise Wrong(f"python -m {words[1]}: there is no such module")
        return _robustclip(words[2:]) if words[1] == "robustclip" else None
    return _script(words[0], words[1:])


def _script(path: str, words: list[str]) -> None:
    if not (ROOT / path).is_file():
        raise Wrong(f"there is no {path}")
    if path.startswith("pipelines/") and (check := COMMANDS.get(Path(path).stem)):
        return check(_parser_of(path), words)
    if path.startswith("pipelines/") or "def parser(" in (ROOT / path).read_text():
        parsed(_parser_of(path), words)
    return None


def _robustclip(words: list[str]) -> None:
    """Check a command of the installed package, the parser of its script."""
    from robustclip.__main__ import COMMANDS as KNOWN

    name = words[0] if words else "--help"
    _known("command", [name], [*KNOWN, "list", "--help", "--version"])
    if name in KNOWN:
        _script(f"pipelines/{name}.py", words[1:])


@cache
def _parser_of(path: str) -> argparse.ArgumentParser:
    """Return the parser of a script, which is loaded and not run."""
    with patch.object(sys, "path", [str(ROOT / "benchmarks"), *sys.path]):
        return runpy.run_path(str(ROOT / path))["parser"]()


def _known(what: str, words: Sequence[str] | None, known: Any) -> None:
    for word in words or ():
        if not is_placeholder(word) and word not in known:
            raise Wrong(f"no {what} {word!r}")


def _sets() -> set[str]:
    """Return the names of sets: embedded, of published protocols, or prepared by some command of the pages."""
    from robustclip.data.variants import AMONG, TYPOGRAPHIC
    from robustclip.data.world import SETS
    from robustclip.evaluation.presets import TITLES

    prepared = [re.search(r"prepare(?:\.py)? .*--name (\S+)", command.text) for page in PAGES for command in commands(page)]
    known = {*SETS, *TITLES, *(found.group(1) for found in prepared if found)}
    among = {f"{AMONG}{other}:{name}" for other in known for name in known - {other}}
    return known | {f"{TYPOGRAPHIC}{name}" for name in known} | among


def _model(name: str) -> None:
    """Raise Wrong for a model's name that stands for nothing: parts in capitals, and folders of runs, are the reader's."""
    import open_clip

    from robustclip import names
    from robustclip.models import checkpoints

    if re.fullmatch(r"mlflow:RUN_ID|models:/[\w-]+/\d+", name):  # in the reader's MLflow
        return
    with refusals():
        found = names.parse(name)
    for part in getattr(found, "parts", ()) or ([found.inner] if hasattr(found, "inner") else []):
        _model(str(part))
    if not isinstance(found, names.Single) or is_placeholder(Path(name).name) or re.search(r"(^|/)outputs/runs/[0-9a-f]{16}/model$", name):
        return
    zoo = {f"open_clip:{architecture}/{tag}" for architecture, tag in open_clip.list_pretrained()}
    _known("model", [name if isinstance(found, names.OfZoo) else Path(name).name], {*checkpoints.embedded(), *zoo})


def _with_keys(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return what a pipeline that takes recipe keys makes of its words, and the keys."""
    from robustclip.runtime import cli
    from robustclip.training.config import Config

    with refusals(), patch.object(sys, "argv", ["pipeline", *words]):
        return cli.parse(parser, Config)


def _config(config: Any, changes: dict[str, Any]) -> None:
    """Raise Wrong for keys that a config does not have, or values that they do not take; a placeholder may be any."""
    from robustclip.base.values import flatten, override

    there = flatten(config)
    with refusals():
        override(config, {path: value for path, value in changes.items() if not (is_placeholder(str(value)) and path in there)})
    _known("data set", [str(changes.get("data.name", "SET"))], _sets())
    _model(str(changes.get("model", "MODEL")))


def _train(parser: argparse.ArgumentParser, words: list[str]) -> None:
    from robustclip.training.recipes import RECIPES

    args, changes = _with_keys(parser, words)
    _known("recipe", [args.recipe], RECIPES)
    _config(RECIPES.get(args.recipe, RECIPES["demo"]).config, changes)


def _pretrain(parser: argparse.ArgumentParser, words: list[str]) -> None:
    from robustclip.training.captioned import PRETRAINING

    args, changes = _with_keys(parser, words)
    if args.name in PRETRAINING:
        _config(PRETRAINING[args.name].config, changes | {"data.name": changes.get("data.name", "SET")})


def _sweep(parser: argparse.ArgumentParser, words: list[str]) -> None:
    from robustclip.evaluation.protocols import PROTOCOLS
    from robustclip.sweeps.spaces import first_config, load_space
    from robustclip.training.recipes import RECIPES

    args, changes = _with_keys(parser, words)
    _known("space", [args.space], {path.stem for path in (ROOT / "tune_spaces").glob("*.py")})
    _known("recipe", [args.recipe] if args.recipe else [], RECIPES)
    _known("protocol", [args.protocol], PROTOCOLS)
    _known("data set", args.sets, _sets())
    space = load_space(ROOT / "tune_spaces" / f"{'epsilon' if is_placeholder(args.space) else args.space}.py")
    _config(first_config(space, args.recipe if args.recipe in RECIPES else None), changes)


def _evaluate(parser: argparse.ArgumentParser, words: list[str]) -> None:
    from robustclip.attacks.catalogue import KNOWN
    from robustclip.evaluation.protocols import PROTOCOLS

    args = parsed(parser, words)
    _known("protocol", [args.protocol], PROTOCOLS)
    _known("attack", args.attacks, KNOWN)
    _known("data set", args.sets, _sets())
    for name in args.models:
        _model(name)


def _moments(parser: argparse.ArgumentParser, words: list[str]) -> None:
    args = parsed(parser, words)
    _known("data set", [args.data], _sets())
    _model(args.model)


def _retrieve(parser: argparse.ArgumentParser, words: list[str]) -> None:
    from robustclip.attacks.catalogue import KNOWN
    from robustclip.data.captions import WORLD

    args = parsed(parser, words)
    _known("attack", args.attacks, KNOWN)
    _known("data set", [args.data], {WORLD, *_sets()})
    for name in args.models:
        _model(name)


def _export(parser: argparse.ArgumentParser, words: list[str]) -> None:
    _model(parsed(parser, words).model)


def _words(parser: argparse.ArgumentParser, words: list[str]) -> None:
    from robustclip.evaluation.protocols import PROTOCOLS

    _known("protocol", [parsed(parser, words).protocol], PROTOCOLS)


def _report(parser: argparse.ArgumentParser, words: list[str]) -> None:
    args = parsed(parser, words)
    for name in (*args.models, *(args.compare or ())):
        _model(name)


def _ray(words: list[str]) -> None:
    """Check a command of ray, and what it submits behind --."""
    docs_tools.ray(words)
    if "--" in words:
        _simple(words[words.index("--") + 1 :])


COMMANDS: dict[str, Callable[[argparse.ArgumentParser, list[str]], None]] = {
    "train": _train,
    "pretrain": _pretrain,
    "sweep": _sweep,
    "evaluate": _evaluate,
    "moments": _moments,
    "retrieve": _retrieve,
    "export": _export,
    "words": _words,
    "report": _report,
}
CHECKED: dict[str, Callable[[list[str]], None]] = {
    "robustclip": _robustclip,
    "python": _python,
    "python3": _python,
    "pytest": docs_tools.pytest_,
    "ray": _ray,
    "mlflow": docs_tools.mlflow,
    "kubectl": docs_tools.kubectl,
    "uv": docs_tools.uv,
    "pip": docs_tools.pip,
    "source": docs_tools.source,
    "export": lambda words: None,
}
