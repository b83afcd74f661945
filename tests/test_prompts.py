"""Visual prompts (TeCoA section 5): sizes, positions, gradients, and no trace left on the frozen tower."""

import pytest
import torch
import torch.nn.functional as F
from parts import NAMES
from torch import nn

from robustclip.base.errors import UserError
from robustclip.base.seeds import generator
from robustclip.models.checkpoints import build
from robustclip.models.dress import PixelPrompt, TokenPrompt
from robustclip.models.insertion import in_images
from robustclip.models.prompts import PixelPad, PixelPatch, Tokens
from robustclip.training.installing import install

G = generator(0, "test")
PROMPTS = (
    PixelPrompt("pad", 2),
    PixelPrompt("fixed patch", 3),
    PixelPrompt("random patch", 3),
    PixelPrompt("whole"),
    TokenPrompt(3),
    TokenPrompt(3, deep=True),
)


def tokens_on(model, count, deep=False):
    return Tokens(model.clip.visual, count, deep, generator(1, "test"))


def features(model, x, prompt=None):
    visual = model.clip.visual
    with torch.no_grad():
        if prompt is None:
            return visual(x)
        with in_images(visual, prompt.visual_layers()):
            return visual(prompt.on_pixels(x))


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_item_7_a_pad_of_30_at_224_has_69840_parameters():
    assert sum(p.numel() for p in PixelPad(224, 30, G).parameters()) == 69_840


def test_200_tokens_of_width_768_have_153600_parameters():
    vision = {"image_size": 32, "patch_size": 32, "width": 768, "layers": 1, "head_width": 64}
    clip = build({"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {"vocab_size": 8, "width": 8, "heads": 1, "layers": 1}}})
    assert sum(p.numel() for p in Tokens(clip.visual, 200, False, G).parameters()) == 153_600


def test_the_pad_is_a_frame_added_after_normalisation(tiny_model):
    pad = PixelPad(16, 3, generator(0, "pad"))
    x = torch.rand(2, 3, 16, 16)
    frame = pad.on_pixels(x) - x
    assert (frame[:, :, 3:-3, 3:-3] == 0).all()
    outside = torch.ones(16, 16, dtype=torch.bool)
    outside[3:-3, 3:-3] = False
    assert (frame[:, :, outside] != 0).all()
    torch.testing.assert_close(frame[0], frame[1])
    assert frame.abs().max() > 1.5  # N(0,1) and unclamped
    torch.testing.assert_close(features(tiny_model, x, pad), features(tiny_model, x + frame))


def test_item_7_no_tokens_are_plain_clip_to_the_bit(tiny_model, pictures):
    x, _, _ = pictures(4)
    assert torch.equal(features(tiny_model, x, tokens_on(tiny_model, 0)), features(tiny_model, x))
    assert torch.equal(features(tiny_model, x, PixelPad(16, 0, G)), features(tiny_model, x))


def test_item_7_tokens_are_appended_without_positions_so_their_order_does_not_matter(tiny_model, pictures):
    x, _, _ = pictures(4)
    prompt = tokens_on(tiny_model, 5)
    before = features(tiny_model, x, prompt)
    assert (before - features(tiny_model, x)).abs().max() > 1e-3
    prompt.tokens.data = prompt.tokens.data[:, [3, 1, 4, 0, 2]]
    torch.testing.assert_close(features(tiny_model, x, prompt), before)
    prompt.tokens.data[:, 0] *= -1
    assert (features(tiny_model, x, prompt) - before).abs().max() > 1e-4


def test_shallow_tokens_are_what_appending_them_by_hand_gives(tiny_model, pictures):
    x, _, _ = pictures(3)
    visual, prompt = tiny_model.clip.visual, tokens_on(tiny_model, 4)
    with torch.no_grad():
        patches = visual.conv1(x).flatten(2).transpose(1, 2)
        sequence = torch.cat([visual.class_embedding.expand(3, 1, -1), patches], 1) + visual.positional_embedding
        sequence = torch.cat([sequence, prompt.tokens[0].expand(3, -1, -1)], 1)
        output = visual.transformer(visual.ln_pre(sequence))
        torch.testing.assert_close(features(tiny_model, x, prompt), visual.ln_post(output[:, 0]) @ visual.proj)


def test_tokens_on_a_timm_tower_are_what_appending_them_by_hand_gives(make_model, pictures):
    """After the positions, before the blocks, and gone before the norm: the pooling of SigLIP's tower sees patches alone."""
    model, (x, _, _) = make_model("timm"), pictures(3, 32)
    trunk, prompt = model.clip.visual.trunk, tokens_on(model, 4)
    with torch.no_grad():
        sequence = trunk.norm_pre(torch.cat([trunk._pos_embed(trunk.patch_embed(x)), prompt.tokens[0].expand(3, -1, -1)], 1))
        output = trunk.blocks(sequence)[:, :-4]
        assert output.shape == (3, 1 + 4, 64)
        expected = model.clip.visual.head(trunk.forward_head(trunk.norm(output)))
    torch.testing.assert_close(features(model, x, prompt), expected)
    assert (expected - features(model, x)).abs().max() > 1e-4
    with torch.no_grad():
        prompt.tokens[:] = prompt.tokens[:, [2, 0, 3, 1]]
    torch.testing.assert_close(features(model, x, prompt), expected)
    assert hooks(model.clip) == 0


def test_deep_tokens_replace_the_last_ones_before_every_block(tiny_model, pictures):
    x, _, _ = pictures(2)
    prompt, inputs = tokens_on(tiny_model, 3, deep=True), []
    assert prompt.tokens.shape[0] == len(tiny_model.clip.visual.transformer.resblocks)
    handles = [
        b.ln_1.register_forward_pre_hook(lambda m, args: inputs.append(args[0])) for b in tiny_model.clip.visual.transformer.resblocks
    ]
    features(tiny_model, x, prompt)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(inputs[0][:, -3:], tiny_model.clip.visual.ln_pre(prompt.tokens[0]).expand(2, -1, -1))
    torch.testing.assert_close(inputs[1][:, -3:], prompt.tokens[1].expand(2, -1, -1))
    assert {len(i[0]) for i in inputs} == {1 + 4 + 3}


@pytest.mark.parametrize("trainable", PROMPTS, ids=str)
def test_every_prompt_parameter_gets_a_gradient_and_the_tower_none(tiny_model, pictures, trainable):
    x, y, _ = pictures(4)
    model, parameters = install(trainable, tiny_model, 0, NAMES)
    F.cross_entropy(model.classifier(NAMES, ["{}"])(x), y).backward()
    for p in parameters:
        assert (p.grad.flatten(2) != 0).any(-1).all()  # of every token of every block, of every side of the frame
    assert all(p.grad is None for p in model.clip.parameters())


@pytest.mark.parametrize("deep", [False, True])
def test_hooks_are_gone_after_a_forward_pass_even_a_failed_one(tiny_model, pictures, deep):
    x, _, _ = pictures(2)
    clean, prompt = features(tiny_model, x), tokens_on(tiny_model, 2, deep)
    features(tiny_model, x, prompt)
    assert hooks(tiny_model.clip) == 0
    with pytest.raises(RuntimeError):
        features(tiny_model, x[:, :2], prompt)
    assert hooks(tiny_model.clip) == 0
    assert torch.equal(features(tiny_model, x), clean)


def test_a_tower_that_pools_over_tokens_does_not_see_the_prompt(pictures):
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8, "pool_type": "avg", "no_ln_pre": True}
    torch.manual_seed(0)
    clip = build({"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": {"vocab_size": 8, "width": 8, "heads": 1, "layers": 1}}})
    x, _, _ = pictures(2)
    prompt, lengths = Tokens(clip.visual, 3, False, G), []
    handle = clip.visual.ln_post.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape))
    with in_images(clip.visual, prompt.visual_layers()):
        clip.visual(x)
    handle.remove()
    assert 3 + 1 + 4 not in lengths[0]
    assert isinstance(clip.visual.ln_pre, nn.Identity)


def test_tokens_on_a_convolutional_tower_are_refused(make_model):
    with pytest.raises(UserError, match=r"prompt tokens need a vision transformer.*ModifiedResNet"):
        tokens_on(make_model("resnet"), 2)


@pytest.mark.parametrize("pad", [-1, 9])
def test_a_frame_wider_than_the_image_is_refused(pad):
    with pytest.raises(UserError, match="between 0 and 8"):
        PixelPad(16, pad, G)


@pytest.mark.parametrize("side", [-1, 17])
def test_a_patch_larger_than_the_image_is_refused(side):
    with pytest.raises(UserError, match="between 0 and 16"):
        PixelPatch(16, side, True, G)


def test_a_patch_lies_where_it_should_and_is_added_to_normalised_pixels(tiny_model):
    """Fixed: top left; the whole image: everywhere; moving, at rest: in the middle, else where it was put; nothing is clamped."""
    x, moved = torch.rand(2, 3, 16, 16), PixelPatch(16, 5, True, G)
    moved.place = (2, 9)
    for prompt, top, left, side in (
        (PixelPatch(16, 4, False, G), 0, 0, 4),
        (PixelPatch(16, 16, False, G), 0, 0, 16),
        (PixelPatch(16, 5, True, G), 5, 5, 5),
        (moved, 2, 9, 5),
    ):
        expected = x.clone()
        expected[:, :, top : top + side, left : left + side] += prompt.patch.detach()
        torch.testing.assert_close(prompt.on_pixels(x), expected)
        assert (prompt.on_pixels(x) - x).abs().max() > 1.5
        torch.testing.assert_close(features(tiny_model, x, prompt), features(tiny_model, expected))


def test_a_moving_patch_reaches_every_place_and_a_fixed_one_never_moves():
    moving, fixed, g = PixelPatch(16, 13, True, G), PixelPatch(16, 13, False, G), generator(0, "places")
    places = set()
    for _ in range(200):
        moving.move(g)
        fixed.move(g)
        places.add(moving.place)
        assert fixed.place == (0, 0)
    assert places == {(top, left) for top in range(4) for left in range(4)}
    moving.rest()
    assert moving.place == (1, 1)
