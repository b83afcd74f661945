"""Parsing what programs are given on the pages: by argparse, by click, or by what we know of a program that isn't ours."""

import argparse
import ast
import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from docs_pages import ROOT

STANDS_FOR = re.compile(r"[A-Z][A-Z0-9_]*")  # CHECKPOINT, RUN, SET: what isn't there


class Wrong(AssertionError):
    """A command that would not run."""


def is_placeholder(word: str) -> bool:
    return STANDS_FOR.fullmatch(word) is not None


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turn what argparse says before it leaves, and what a user can mend, into Wrong."""
    from robustclip.base.errors import UserError

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit:
        raise Wrong(said.getvalue().strip().splitlines()[-1]) from None
    except UserError as error:
        raise Wrong(str(error)) from error


def parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Return what a parser makes of words; a placeholder is no number, so for a number's option 1 stands for it."""
    numbers = {option for action in parser._actions if action.type is not None for option in action.option_strings}
    with refusals():
        return parser.parse_args(["1" if i and words[i - 1] in numbers and is_placeholder(word) else word for i, word in enumerate(words)])


def pytest_(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="pytest")
    parser.add_argument("paths", nargs="*")
    for option in ("-n", "--dist", "-m", "-k"):
        parser.add_argument(option)
    for option in ("-q", "-s", "-x"):
        parser.add_argument(option, action="store_true")
    args = parsed(parser, words)
    paths = [ROOT / path for path in args.paths] or sorted((ROOT / "tests").glob("test_*.py"))
    for path in paths:
        if not path.is_file():
            raise Wrong(f"pytest: there is no {path.relative_to(ROOT)}")
    if not any(_holds(args.k, name) and _holds(args.m, marks) for path in paths for name, marks in _tests(path)):
        raise Wrong(f"pytest: no test is selected by {' and '.join(filter(None, (args.k, args.m)))}")


def _tests(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what -k and what -m may find of every test of a file: its name with the file's, its marks with the file's."""
    tree = ast.parse(path.read_text())
    all_of_it = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = re.findall(r"pytest\.mark\.(\w+)", " ".join(map(ast.unparse, [*node.decorator_list, *all_of_it])))
            yield f"{path.stem} {node.name}", " ".join(marks)


def _holds(expression: str | None, text: str) -> bool:
    """Return whether a -k or -m expression holds of a text, in which its words are or are not."""
    said = re.sub(r"\b(?!(?:and|or|not)\b)\w+", lambda word: str(word.group() in text), expression or "")
    return bool(eval(said or "True"))


def ray(words: list[str]) -> None:
    from ray.scripts.scripts import cli

    _by_click(cli, "ray", words)
    for word in words:
        if word.endswith(".yaml") and not (ROOT / word).is_file():
            raise Wrong(f"ray: there is no {word}")


def mlflow(words: list[str]) -> None:
    from mlflow.cli import cli

    _by_click(cli, "mlflow", words)


def _by_click(command: Any, path: str, words: Sequence[str]) -> None:
    """Parse words by a program's own click command, which is not run."""
    import click

    context, rest = click.Context(command, info_name=path), list(words)
    while isinstance(command, click.Group) and rest:
        path = f"{path} {rest[0]}"
        command = command.get_command(context, rest.pop(0))
        if command is None:
            raise Wrong(f"there is no {path}")
    try:
        if rest:  # without a word more it is only named
            command.make_context(path, rest)
    except click.ClickException as error:
        raise Wrong(f"{path}: {error.format_message()}") from error


def kubectl(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="kubectl")
    verbs = parser.add_subparsers(dest="verb", required=True)
    apply = verbs.add_parser("apply")
    apply.add_argument("-f", required=True)
    apply.add_argument("--dry-run", choices=["none", "client", "server"])
    logs = verbs.add_parser("logs")
    logs.add_argument("-f", action="store_true")
    logs.add_argument("resource")
    args = parsed(parser, words)
    if args.verb == "apply" and not (ROOT / args.f).is_file():
        raise Wrong(f"kubectl: there is no {args.f}")
    name = yaml.safe_load((ROOT / "clusters" / "kuberay.yaml").read_text())["metadata"]["name"]
    if args.verb == "logs" and args.resource.rpartition("/")[2] != name:
        raise Wrong(f"kubectl: clusters/kuberay.yaml makes {name}, not {args.resource}")


def uv(words: list[str]) -> None:
    if words == ["run"]:  # what a page says not to use
        return
    parser = argparse.ArgumentParser(prog="uv")
    parser.add_argument("-V", action="store_true")
    verbs = parser.add_subparsers(dest="verb")
    sync = verbs.add_parser("sync")
    for option in ("--no-dev", "--compile-bytecode", "--no-python-downloads"):
        sync.add_argument(option, action="store_true")
    sync.add_argument("--extra")
    sync.add_argument("--group")
    verbs.add_parser("build").add_argument("--wheel", action="store_true")
    _pip_options(verbs.add_parser("pip"))
    parsed(parser, words)


def pip(words: list[str]) -> None:
    parsed(_pip_options(argparse.ArgumentParser(prog="pip")), words)


def _pip_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    install = parser.add_subparsers(dest="install", required=True).add_parser("install")
    install.add_argument("packages", nargs="+")
    install.add_argument("-q", action="store_true")
    install.add_argument("--no-cache-dir", action="store_true")
    install.add_argument("--override")
    return parser


def source(words: list[str]) -> None:
    if words != [".venv/bin/activate"]:
        raise Wrong(f"source {' '.join(words)}: only .venv/bin/activate is there after the README's command")
