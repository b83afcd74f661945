"""The commit that results are made with."""

import subprocess
from functools import cache
from pathlib import Path


@cache
def git_commit() -> str | None:
    """Return the commit of a source checkout, None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or None
