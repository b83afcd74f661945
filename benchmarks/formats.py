"""Models in and out at full size: the largest difference of logits for every form of files and folders, ours and where others load them.

    python benchmarks/formats.py [ARCHITECTURE] [--to FOLDER]

Weights are random (no model hub is needed), their scale is 100 as in trained models, and two pictures meet three texts. What transformers
loads and writes needs `pip install 'robustclip[hf]'`. FOLDER holds a few times the size of the model while it runs.
"""

import argparse
import copy
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from robustclip import names as models
from robustclip.models import exporting, hugging_face, statedicts

TEXTS = ["a photo of a cat.", "a photo of a red fox", "two papillons on a cloud"]
OPTIMIZER = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 1e-5}]}


def source(architecture: str, seed: int = 1) -> Any:
    """Return a random model away from its first draw, with the scale of a trained one."""
    model = models.load(f"open_clip:{architecture}/random[seed={seed}]")
    g = torch.Generator().manual_seed(0)
    for parameter in model.clip.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=g)
    model.clip.logit_scale.data.fill_(math.log(100))  # type: ignore[operator, union-attr]
    return model


class Trial:
    """Pictures and texts for one model."""

    def __init__(self, model: Any):
        side = model.preprocess.size
        self.images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        self.tokens = model.tokenizer(TEXTS)

    def logits(self, clip: Any) -> Tensor:
        image, text, scale = clip.eval().requires_grad_(False)(self.images, self.tokens)[:3]
        return scale * image @ text.T

    def of_transformers(self, clip: Any) -> Tensor:
        return clip.eval().requires_grad_(False)(input_ids=self.tokens, pixel_values=self.images).logits_per_image


def files(model: Any) -> dict[str, tuple[Any, bool]]:
    """Return form -> what a file of it holds, and whether that is one tower."""
    whole, tower = dict(model.clip.state_dict()), dict(model.clip.visual.state_dict())
    numbers = {name: torch.tensor(7) for name in statedicts.OPENAI}
    wrapped = {"epoch": 1, "state_dict": {f"module.{name}": t for name, t in whole.items()}, "optimizer": OPTIMIZER}
    tecoa = {"best_acc1": np.float64(41.5), "state_dict": {}, "add_prompter": {"module.prompt": torch.zeros(1, 0, 8)}}
    return {
        "state dict": (whole, False),
        "state dict of DataParallel beside an optimizer": (wrapped, False),
        "OpenAI's names with its numbers": (whole | numbers, False),
        "transformers' names in one file": (hugging_face.to_transformers(whole), False),
        "visual tower (FARE)": (tower, True),
        "vision_encoder_state_dict (TeCoA)": (tecoa | {"vision_encoder_state_dict": tower}, True),
    }


def rows_in(architecture: str, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every form of a file that is read, and the difference from the model it was written from."""
    model = source(architecture)
    trial, based = Trial(model), copy.deepcopy(models.load(f"open_clip:{architecture}/random[seed=0]").clip)
    based.visual.load_state_dict(model.clip.visual.state_dict())
    wanted = {False: trial.logits(model.clip), True: trial.logits(based)}
    for form, (held, tower) in files(model).items():
        torch.save(held, folder / "file")
        found = models.load(f"open_clip:{architecture}/{'random[seed=0]/' if tower else ''}{folder}/file")
        yield f"in: {form}", trial.logits(found.clip) - wanted[tower]
    save_file(model.clip.state_dict(), folder / "file")
    yield "in: safetensors", trial.logits(models.load(f"open_clip:{architecture}/{folder}/file").clip) - wanted[False]
    (folder / "file").unlink()


def rows_out(architecture: str, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every form that is written, and the difference where others load it and where it is read again."""
    model = source(architecture)
    trial = Trial(model)
    wanted = trial.logits(model.clip)
    for form, load in (("open_clip", lambda to: open_clip.create_model_and_transforms(f"local-dir:{to}")[0]), ("visual", None)):
        to = fresh(folder, form)
        exporting.write(model, form, str(to))
        if load:
            yield "out: open_clip, loaded by open_clip", trial.logits(load(to)) - wanted
            yield "out: open_clip, in again", trial.logits(models.load(str(to)).clip) - wanted
        else:
            other = copy.deepcopy(model.clip)
            other.visual.load_state_dict(torch.load(to / exporting.TOWER, weights_only=True))
            yield "out: visual, loaded into open_clip's tower", trial.logits(other) - wanted
        shutil.rmtree(to)
    to = fresh(folder, "hf")
    exporting.write(model, "hf", str(to))
    yield "out: hf, in again", trial.logits(models.load(str(to)).clip) - wanted
    try:
        import transformers
    except ImportError:
        return
    theirs = transformers.CLIPModel.from_pretrained(to)
    yield "out: hf, loaded by transformers", trial.of_transformers(theirs) - wanted
    for form, size in (("whole", "100GB"), ("in parts", "200MB")):
        theirs.save_pretrained(fresh(folder, "theirs"), max_shard_size=size)
        found = trial.logits(models.load(str(folder / "theirs")).clip)
        yield f"in: CLIPModel's folder as transformers writes it, {form}", found - trial.of_transformers(theirs)


def fresh(folder: Path, name: str) -> Path:
    """Return an empty folder."""
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).mkdir()
    return folder / name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", nargs="?", default="ViT-B-32-quickgelu")
    parser.add_argument("--to", help="folder for the files (default: a temporary one)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("robustclip").setLevel(logging.ERROR)  # that files do not say their activation
    print(f"| {args.architecture} | largest difference of logits |\n| --- | ---: |")
    parts: tuple[Callable[..., Iterator[tuple[str, Tensor]]], ...] = (rows_in, rows_out)
    with tempfile.TemporaryDirectory(dir=args.to) as folder:
        for rows in parts:
            for title, difference in rows(args.architecture, Path(folder)):
                print(f"| {title} | {difference.abs().max().item():.1e} |", flush=True)


if __name__ == "__main__":
    main()
