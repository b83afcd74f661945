"""Files of weights for an architecture: which activation they were trained with, where that can be told; nothing in them is ever run.

OpenAI trained with QuickGELU; under plain GELU its weights load without a word and lose accuracy.
"""

import os
import re
import zipfile

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.models import statedicts
from robustclip.models.statedicts import warn

CONFIG = "open_clip_config.json"  # beside the weights in a folder of the hub
BIG_VISION = (".npz", ".npy")  # Google's SigLIP in arrays of numpy, which open_clip reads
ACTIVATION = {True: "QuickGELU", False: "plain GELU"}


def quick_gelu(architecture: str) -> bool:
    """Return whether open_clip builds an architecture with QuickGELU."""
    import open_clip

    return bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu", False))


def check(architecture: str, file: str, other: str, known: bool = False) -> None:
    """Raise UserError for a file that is not there, is a program, or whose weights need the `other` architecture.

    Where nothing tells, and the activation is not `known` from elsewhere, it warns.
    """
    import open_clip

    if not os.path.isfile(file):
        raise UserError(f"there is no file {file} on this machine: give {architecture} one, or a tag, which has neither dot nor slash")
    built = quick_gelu(architecture)
    if (code := program(file)) is not None:
        right = architecture if built or "sigmoid(" not in code else other  # QuickGELU is x * sigmoid(1.702 x)
        raise UserError(
            f"{file} is a TorchScript archive, the form in which OpenAI publishes its models: a program, which is never run here; load "
            f"open_clip:{right}/openai, or, if you trust it, write its tensors alone to another file, torch.save(torch.jit.load("
            f"FILE, 'cpu').state_dict(), TO), and load open_clip:{right}/TO"
        )
    trained = told(file)
    if trained is None and not known and other in open_clip.list_models():
        warn(
            f"{file} does not say with which activation its weights were trained; here they run with {ACTIVATION[built]}. OpenAI's, "
            f"MetaCLIP's and DFN's need QuickGELU, most others plain GELU: if {ACTIVATION[not built]} is right, load "
            f"open_clip:{other}/{file}; an {CONFIG} beside the file says it for good"
        )
    elif trained is not None and trained != built:
        raise UserError(
            f"{file}: these weights use {ACTIVATION[trained]}, {architecture} has {ACTIVATION[built]}; load open_clip:{other}/{file}"
        )


def program(file: str) -> str | None:
    """Return the source text of a TorchScript archive, None for any other file."""
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        code = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/code/.*\.py", name)]
        return "\n".join(archive.read(name).decode(errors="replace") for name in code) if code else None


def told(file: str) -> bool | None:
    """Return whether weights were trained with QuickGELU, by what lies in their file or beside it; None where neither tells."""
    if of_openai(file):
        return True
    beside = storage.join(storage.parent_of(file), CONFIG)
    config = storage.read_json(beside) if storage.exists(beside) else {}
    return bool(config["model_cfg"].get("quick_gelu", False)) if "model_cfg" in config else None


def of_openai(file: str) -> bool:
    """Return whether a file holds what was saved of OpenAI's model: its numbers are among the tensors."""
    if file.endswith(BIG_VISION):
        return False
    return set(statedicts.OPENAI) <= {name.rpartition(".")[2] for name in statedicts.state_of(file)}
