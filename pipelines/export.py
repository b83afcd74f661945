"""`robustclip export` as a script."""

from robustclip.__main__ import script
from robustclip.base import errors

parser, run = script("export")

if __name__ == "__main__":
    errors.main(run)
