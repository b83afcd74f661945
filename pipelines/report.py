"""`robustclip report` as a script."""

from robustclip.base import errors
from robustclip.commands.report import parser, run

__all__ = ["parser", "run"]

if __name__ == "__main__":
    errors.main(run)
