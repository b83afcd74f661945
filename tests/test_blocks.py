"""First and last blocks: they part a tower where an image meets its blocks, of every kind that open_clip builds, or refuse it."""

import json
import re
from functools import partial
from pathlib import Path
from unittest.mock import patch

import open_clip
import pytest
import torch
from parts import NAMES, TEMPLATES, config, learner_of, pixels, step
from torch import nn

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.defenses import TeCoA
from robustclip.models import checkpoints, exporting
from robustclip.models.checkpoints import build
from robustclip.training import blocks
from robustclip.training.installing import install
from robustclip.training.trainables import FirstBlocks, LastBlocks, VisualTower

# One of open_clip's architectures for every kind of tower: how many blocks, and all that an image meets before them.
STEMS = {
    "coca_ViT-B-32": (12, r"class_embedding|positional_embedding|conv1\.weight|ln_pre\.(weight|bias)"),
    "RN50": (16, r"(conv|bn)[123]\.(weight|bias)"),
    "ViT-B-16-SigLIP": (12, r"trunk\.(pos_embed|patch_embed\.proj\.(weight|bias))"),
    "EVA02-B-16": (12, r"trunk\.(cls_token|pos_embed|patch_embed\.proj\.(weight|bias))"),
    "MobileCLIP2-L-14": (24, r"trunk\.(cls_token|pos_embed|patch_embed\.proj\.weight|norm_pre\.(weight|bias))"),
    "ViTamin-S": (14, r"trunk\.(pos_embed|patch_embed\.(proj|backbone)\..*)"),
    "convnext_tiny": (4, r"trunk\.stem\..*"),
    "MobileCLIP-S1": (4, r"trunk\.stem\..*"),
    "swin_base_patch4_window7_224": (4, r"trunk\.patch_embed\.(proj|norm)\.(weight|bias)"),
}
CONVNEXT = {"timm_model_name": "test_convnext", "image_size": 32, "timm_pool": "avg", "timm_proj": "linear"}
TEXT = {"vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
KINDS = ("vit", "resnet", "siglip", "timm", "convnext")


def tower(name):
    """Return the visual tower of one of open_clip's architectures, without memory for its weights."""
    folder = Path(open_clip.__file__).parent / "model_configs"
    said = json.loads((folder / f"{name}.json").read_text())
    linspace = partial(torch.linspace, device="cpu")  # earlier releases of timm read numbers of it
    with torch.device("meta"), patch("torch.linspace", linspace):
        return build({"model_cfg": {"embed_dim": said["embed_dim"], "vision_cfg": said["vision_cfg"], "text_cfg": TEXT}}).visual


def small(make_model, kind):
    """Return a tiny tower and the side of its images."""
    if kind != "convnext":
        model = make_model(kind)
        return model.clip.visual, model.preprocess.size
    return build({"model_cfg": {"embed_dim": 8, "vision_cfg": CONVNEXT, "text_cfg": TEXT}}).visual.eval(), 32


def named(visual, parameters):
    chosen = {id(p) for p in parameters}
    return {name for name, p in visual.named_parameters() if id(p) in chosen}


def met_by(visual, block, size):
    """Return what a block of a tower is given of two images."""
    met = []
    handle = visual.get_submodule(block[:-1]).register_forward_pre_hook(lambda module, args: met.append(args[0]))
    visual(torch.randn(2, 3, size, size))
    handle.remove()
    return met[0]


@pytest.mark.parametrize("name", STEMS)
def test_first_and_last_part_every_tower_in_two(name):
    """What the first n train and what the last N - n do share nothing, and together they are the tower; 0 blocks are the stem."""
    visual, (count, stem) = tower(name), STEMS[name]
    every = {each for each, _ in visual.named_parameters()}
    assert named(visual, blocks.first_of(visual, 0, "x")) == {each for each in every if re.fullmatch(stem, each)} != set()
    for n in range(count):
        first, last = named(visual, blocks.first_of(visual, n, "x")), named(visual, blocks.last_of(visual, count - n, "x"))
        assert first | last == every
        assert not first & last
    with pytest.raises(UserError, match=rf"trainable\.blocks is {count + 1}: this visual tower has {count} blocks"):
        blocks.first_of(visual, count + 1, "x")


@pytest.mark.parametrize("kind", KINDS)
def test_first_blocks_are_what_an_image_meets_before_the_next_block(kind, make_model):
    """The input of block n depends on all that the first n blocks train and on nothing else: the graph that leads to it says so."""
    visual, size = small(make_model, kind)
    for n, block in enumerate(blocks.tower_of(visual, "x").blocks):
        every = dict(visual.requires_grad_(True).named_parameters())
        found = torch.autograd.grad(met_by(visual, block, size).square().sum(), list(every.values()), allow_unused=True)
        reached = {name for name, gradient in zip(every, found, strict=True) if gradient is not None}
        assert reached == named(visual, blocks.first_of(visual, n, "x"))


def test_the_first_blocks_count_from_the_beginning(make_model):
    sizes = [sum(p.numel() for p in install(FirstBlocks(n), make_model(), 0, NAMES)[1]) for n in (0, 1, 2)]
    block = sum(p.numel() for p in make_model().clip.visual.transformer.resblocks[0].parameters())
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == block
    after = sum(p.numel() for p in install(LastBlocks(1), make_model(), 0, NAMES)[1]) - block
    assert sizes[2] + after == sum(p.numel() for p in install(VisualTower(), make_model(), 0, NAMES)[1])


def test_installed_they_change_nothing_and_trained_they_are_an_ordinary_tower(make_model, pictures, tmp_path):
    plain, (x, y, ids) = make_model(), pictures(8)
    learner = learner_of(make_model(), config(TeCoA(), FirstBlocks(1), batch=8))
    with torch.no_grad():
        torch.testing.assert_close(learner.student(x), plain.classifier(NAMES, TEMPLATES)(x), atol=1e-5, rtol=1e-5)
    for _ in range(2):
        step(learner, (pixels(x), y, ids))
    learner.finish()
    with torch.no_grad():
        trained = learner.student(x)
    checkpoints.save(learner.model, str(tmp_path / "model"), trainable={"type": "FirstBlocks", "blocks": 1})
    back = models.load(str(tmp_path / "model"))
    assert (back.prompt, back.readout) == (None, None)
    assert back.sha256 == learner.model.sha256 != plain.sha256
    with torch.no_grad():
        torch.testing.assert_close(back.classifier(NAMES, TEMPLATES)(x), trained, atol=1e-4, rtol=1e-4)
    before, after = plain.clip.state_dict(), back.clip.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    first = r"visual\.(class_embedding|positional_embedding|conv1\.weight|ln_pre\..*|transformer\.resblocks\.0\..*)"
    assert changed == {name for name in after if re.fullmatch(first, name)}
    exporting.check(back)


# --- refused --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_more_blocks_than_there_are_or_fewer_than_none_are_refused(kind, make_model):
    count = {"vit": 2, "resnet": 4}[kind]
    with pytest.raises(UserError, match=rf"trainable\.blocks is {count + 1}: this visual tower has {count} blocks"):
        install(FirstBlocks(count + 1), make_model(kind), 0, NAMES)
    with pytest.raises(UserError, match=r"trainable\.blocks is -1: it takes a whole number of at least 0"):
        FirstBlocks(-1)


@pytest.mark.parametrize("trainable", [FirstBlocks(), LastBlocks()], ids=str)
def test_a_tower_without_blocks_is_refused(trainable, tiny_model):
    tiny_model.clip.visual = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 16))
    said = f"{type(trainable).__name__} does not know the blocks of a Sequential: choose VisualTower or NormsAndBiases"
    with pytest.raises(UserError, match=said):
        install(trainable, tiny_model, 0, NAMES)


def test_a_parameter_that_lies_nowhere_we_know_is_never_passed_over(make_model):
    """A part that some version of timm may add: silently frozen, the stem would not be what the setting says."""
    model = make_model("timm")
    model.clip.visual.trunk.register_parameter("mask_token", nn.Parameter(torch.zeros(1, 1, 64)))
    with pytest.raises(UserError, match=r"FirstBlocks does not know where trunk\.mask_token lies in a VisionTransformer: choose Visual"):
        install(FirstBlocks(1), model, 0, NAMES)
    assert install(LastBlocks(1), model, 0, NAMES)[1]
