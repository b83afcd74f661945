"""Files of texts: JSON that says something of each class, or of each image."""

import json
from typing import Any

from robustclip.base import storage
from robustclip.base.errors import UserError


def read_texts(path: str, what: str, key: str) -> dict[str, list[str]]:
    """Return what a file of `what` says, {key: [texts]}; raises UserError for one that cannot be read or says something else."""
    form = f"write JSON {{{key}: [texts]}}"
    try:
        found: Any = json.loads(storage.read_bytes(storage.resolve(path)))
    except OSError as error:
        raise UserError(f"the {what} {path} cannot be read: {' '.join(str(error).split())}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} holds no {what}, it is no JSON: {error}") from error
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} holds no {what}: {form}")
    for name, texts in found.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{path}: what it says of {name!r} is no list of texts: {form}")
    return found
