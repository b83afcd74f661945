"""What the pipelines share at the edge: logging to the terminal, recipe keys as options, where results go."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustclip import storage
from robustclip.errors import UserError


def say_on_terminal() -> None:
    """Show the package's own log lines, plainly, on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    package = logging.getLogger("robustclip")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add --out, which inside a Ray job (whose working folder is thrown away) defaults to a fixed folder in the head's home."""
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    default = str(Path.home() / "robustclip") if in_job else "outputs"
    parser.add_argument("--out", default=default, help="folder or file://, s3://, gs:// URI of all results (default: %(default)s)")


def out_folder(args: argparse.Namespace) -> str:
    """Return --out as an absolute path or URI."""
    return storage.resolve(args.out)


def overrides(words: Sequence[str]) -> dict[str, Any]:
    """Return `--threat.image.eps 2 --trainable TokenPrompt` as {"threat.image.eps": 2, ...}; values are JSON, or text where that fails."""
    changes, words = {}, list(words)
    while words:
        word = words.pop(0)
        name, joined, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not (joined or words):
            raise UserError(f"{word!r} is not an option: recipe keys are given as --threat.image.eps 2")
        value = value if joined else words.pop(0)
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = {"None": None, "True": True, "False": False}.get(value, value)
    return changes
