"""The command `robustclip`, and `python -m robustclip`: one word says which of the commands runs."""

import argparse
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from textwrap import shorten

import robustclip
from robustclip.base import errors

COMMANDS = {
    "sweep": "run a search space: train every trial, attack the models, draw table and figures",
    "train": "fine-tune one recipe; the same command again goes on where it stopped",
    "evaluate": "attack models by a protocol, plain CLIP always among them",
    "retrieve": "look up texts by images and images by texts, attacked: recall at k",
    "reproduce": "measure what a paper claims, by rules fixed before, and write the verdicts",
    "report": "turn what was measured into tables, figures and one HTML page",
    "prepare": "turn a data set, or all of a suite, as published into shards",
    "moments": "write the token statistics that TAPT aligns images to",
    "words": "write the words that BERT would put into class prompts",
    "export": "write a model as open_clip or transformers take it, with its robust card",
    "pretrain": "train a CLIP from nothing: an embedded one, or one of a set's captions",
}
HELP = """robustclip makes CLIP-style models robust to adversarial images and texts, and measures it honestly.

start here:  robustclip sweep     fine-tunes a tiny CLIP at four eps and attacks it: minutes on two cores, no GPU, no downloads
             robustclip list      every model, recipe, protocol, data set and attack by name

usage: robustclip COMMAND ...     `robustclip COMMAND --help` says what it takes

{commands}

Results lie in outputs/ (--out); every command ends by saying where, and how to open them.
"""
WIDE = 44  # characters of a name in the list; longer ones push their line to the right


def listing() -> str:
    """Return everything that can be named, under five headings."""
    parts = {kind: getattr(robustclip, f"list_{kind}")() for kind in ("models", "recipes", "protocols", "sets", "attacks")}
    return "\n\n".join(f"{kind} ({len(known)})\n{lines(known, WIDE)}" for kind, known in parts.items()) + "\n"


def lines(known: Mapping[str, str], wide: int) -> str:
    """Return a line for each name with what it is."""
    return "\n".join(f"  {name:<{wide}} {shorten(said, 140, placeholder=' ...')}" for name, said in known.items())


def script(name: str) -> tuple[Callable[[], argparse.ArgumentParser], Callable[[], None]]:
    """Return `parser` and `run` of a command for a script, which imports the command when it runs: from the start it can be stopped."""

    def parser() -> argparse.ArgumentParser:
        return import_module(f"robustclip.commands.{name}").parser()

    def run() -> None:
        import_module(f"robustclip.commands.{name}").run()

    return parser, run


def run() -> None:
    """Run the command that the first word names; raises UserError for another word."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        sys.argv = [f"robustclip {name}", *words]
        script(name)[1]()
    elif name == "list":
        sys.stdout.write(listing())
    elif name in ("--help", "-h", "help"):
        sys.stdout.write(HELP.format(commands=lines(COMMANDS, 10)))
    elif name == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"robustclip {version('robustclip')}\n")
    else:
        known = [*COMMANDS, "list"]
        raise errors.UserError(f"no command {name!r}{errors.did_you_mean(name, known)}; there are {', '.join(known)}")


def main() -> None:
    """Run a command; what a user can mend is one line and exit status 2."""
    errors.main(run)


if __name__ == "__main__":
    main()
