"""A tiny model and one fine-tuned from it, in folders as training leaves them, for tests of what is made of both."""

import pyarrow as pa
import torch

from robustclip import names as models
from robustclip.base import storage
from robustclip.models import checkpoints


def moved(model, seed=5):
    """Return a copy whose visual tower has slightly other weights and batch norm statistics."""
    tuned, g = model.copy(), torch.Generator().manual_seed(seed)
    for tensor in tuned.clip.visual.state_dict().values():
        tensor += 0.02 * torch.randn(tensor.shape, generator=g) if tensor.is_floating_point() else 7
    return tuned


def saved_run(tuned, folder, base, run="abc", **card):
    """Save a model as training saves one that was fine-tuned from the folder `base`."""
    facts = {"base": {"name": base, "sha256": models.identity(base)}, "class_names": ["red", "cat"], "templates": ["a {} thing."]}
    checkpoints.save(tuned, str(folder), **({"run": run} | facts | card))
    storage.write_table(str(folder / checkpoints.SELECTION), pa.table({"id": [f"{run}/0", "all/0"]}))
    return str(folder)


def pair(make_model, folder, kind="vit"):
    """Return the folders, both in `folder`, of a tiny model and of one fine-tuned from it."""
    base = make_model(kind)
    checkpoints.save(base, str(folder / "clip"))
    return str(folder / "clip"), saved_run(moved(base), folder / "model", str(folder / "clip"))
