"""python -m robustclip: what there is, one line each."""

import sys
from collections.abc import Mapping
from textwrap import shorten

from robustclip import list_attacks, list_models, list_protocols, list_recipes

WIDE = 44  # characters of a name; longer ones push their line to the right


def listing() -> str:
    """Return everything that can be named, under four headings."""
    parts = {"models": list_models(), "recipes": list_recipes(), "protocols": list_protocols(), "attacks": list_attacks()}
    return "\n\n".join(f"{title} ({len(known)})\n{lines(known)}" for title, known in parts.items())


def lines(known: Mapping[str, str]) -> str:
    """Return a line for each name with what it is."""
    return "\n".join(f"  {name:<{WIDE}} {shorten(said, 140, placeholder=' ...')}" for name, said in known.items())


if __name__ == "__main__":
    sys.stdout.write(f"{listing()}\n")
