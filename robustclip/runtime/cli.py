"""What the pipelines share at the edge: logging to the terminal, recipe keys as options, where results go."""

import argparse
import dataclasses
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.forecast import LONG, Forecast
from robustclip.base.ranges import SHARE, Range
from robustclip.base.values import value_of

log = logging.getLogger(__name__)

AUTO = "auto"


class Terminal(logging.StreamHandler[Any]):
    """Writes to what stderr is when there is something to say: whoever runs a command inside a program may have replaced it since."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))

    @property
    def stream(self) -> Any:
        return sys.stderr


def say_on_terminal() -> None:
    """Show the package's own log lines, plainly, on stderr."""
    package = logging.getLogger("robustclip")
    if not any(isinstance(handler, Terminal) for handler in package.handlers):
        package.addHandler(Terminal())
    package.setLevel(logging.INFO)
    package.propagate = False


class Parser(argparse.ArgumentParser):
    """The parser of a command; what it refuses is one line, as everything that a user can mend."""

    def __init__(self, description: str | None):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with what was wrong and where help is."""
        raise UserError(f"{message}; see {self.prog} --help")


def taking(numbers: Range) -> Callable[[str], float]:
    """Return the argparse type of an option that takes such numbers and no others."""

    def read(text: str) -> float:
        try:
            value = numbers.read(text)
        except ValueError:
            value = None
        if value is None or not numbers.has(value):
            raise argparse.ArgumentTypeError(f"takes {numbers}, not {text!r}")
        return value

    return read


def command(*words: str) -> str:
    """Return a command of this program as a shell takes it."""
    return shlex.join(["robustclip", *words])


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add --out, which inside a Ray job (whose working folder is thrown away) defaults to a fixed folder in the head's home."""
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    default = str(Path.home() / "robustclip") if in_job else "outputs"
    parser.add_argument("--out", default=default, help="folder or file://, s3://, gs:// URI of all results (default: %(default)s)")


def model_name(text: str) -> str:
    """Return the name of a registered model; raises ArgumentTypeError for one that MLflow would not take, or not find again."""
    if not re.fullmatch(r"[^/:@,\[\]'\"%]+", text):
        raise argparse.ArgumentTypeError(f"takes a name without / : @ , [ ] % and quotes, not {text!r}")
    return text


def add_register(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --register."""
    about = f"make {what} the next version of this registered model of MLflow"
    parser.add_argument("--register", type=model_name, metavar="NAME", help=about)


def gpu_share(text: str) -> float | None:
    """Return the share of a GPU that an option names, None for `auto`; raises ArgumentTypeError for what is neither."""
    return None if text == AUTO else taking(SHARE)(text)


def add_gpus(parser: argparse.ArgumentParser, who: str) -> None:
    """Add --gpus."""
    about = f"share of a GPU each {who} takes; {AUTO}: as many share one as its memory holds, by a measurement (default: %(default)s)"
    parser.add_argument("--gpus", type=gpu_share, default=1.0, help=about)


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add --plan."""
    parser.add_argument("--plan", action="store_true", help="say what it will take on this machine, by a few measured passes, and end")


def tell_if_long(ahead: Forecast) -> None:
    """Say what a command will take, where that is long."""
    if ahead.seconds > LONG:
        log.info("this will take long; the same command with --plan says as much and ends\n%s", ahead)


def out_folder(args: argparse.Namespace) -> str:
    """Return --out as an absolute path or URI; raises UserError for an empty one and where nothing can be written."""
    if not args.out:
        raise UserError("--out is empty: give a folder, or a file://, s3:// or gs:// URI")
    return storage.writable(storage.resolve(args.out))


def file_to_write(given: str) -> str:
    """Return a file to write, as an absolute path or URI; raises UserError where nothing can be written."""
    file = storage.resolve(given)
    storage.writable(storage.parent_of(file))
    return file


def parse(parser: argparse.ArgumentParser, config: type) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse the command line into the parser's own arguments and the changes to a recipe's `config`, wherever in the line each stands."""
    keys, mine, theirs, words = {field.name for field in dataclasses.fields(config)}, [], [], sys.argv[1:]
    while words:
        word = words.pop(0)
        name, joined, _ = word.removeprefix("--").partition("=")
        # Taken out before argparse sees them: it would take the value of an option it does not know for a positional argument.
        if word.startswith("--") and ("." in name or name in keys):
            theirs += [word] if joined else [word, *words[:1]]
            words = words if joined else words[1:]
        else:
            mine.append(word)
    args, unknown = parser.parse_known_args(mine)
    return args, overrides([*theirs, *unknown])


def overrides(words: Sequence[str]) -> dict[str, Any]:
    """Return `--threat.image.eps 2 --trainable TokenPrompt` as {"threat.image.eps": 2, ...}; values are JSON, or text where that fails."""
    changes, words = {}, list(words)
    while words:
        word = words.pop(0)
        name, joined, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not (joined or words):
            raise UserError(f"{word!r} is not an option: recipe keys are given as --threat.image.eps 2")
        changes[name] = value_of(value if joined else words.pop(0))
    return changes
