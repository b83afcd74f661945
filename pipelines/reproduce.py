"""`robustclip reproduce` as a script."""

from robustclip.__main__ import script
from robustclip.base import errors

parser, run = script("reproduce")

if __name__ == "__main__":
    errors.main(run)
