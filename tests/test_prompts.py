"""Visual prompts (TeCoA section 5): sizes, positions, gradients, and no trace left on the frozen tower."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustclip.errors import UserError
from robustclip.model import build
from robustclip.prompts import PixelPad, Tokens
from robustclip.seeds import generator
from robustclip.trainables import PadPrompt, TokenPrompt

G = generator(0, "test")


def tokens_on(model, count, deep=False):
    return Tokens(model.clip.visual, count, deep, generator(1, "test"))


def features(model, x, prompt=None):
    visual = model.clip.visual
    with torch.no_grad():
        if prompt is None:
            return visual(x)
        with prompt.on_tokens(visual):
            return visual(prompt.on_pixels(x))


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_a_pad_of_30_at_224_has_69840_parameters():
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


def test_no_tokens_are_plain_clip_to_the_bit(tiny_model, pictures):
    x, _, _ = pictures(4)
    assert torch.equal(features(tiny_model, x, tokens_on(tiny_model, 0)), features(tiny_model, x))
    assert torch.equal(features(tiny_model, x, PixelPad(16, 0, G)), features(tiny_model, x))


def test_tokens_are_appended_without_positions_so_their_order_does_not_matter(tiny_model, pictures):
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


@pytest.mark.parametrize("trainable", [PadPrompt(2), TokenPrompt(3), TokenPrompt(3, deep=True)], ids=str)
def test_every_prompt_parameter_gets_a_gradient_and_the_tower_none(tiny_model, pictures, trainable):
    x, y, _ = pictures(4)
    model, parameters = trainable.install(tiny_model, seed=0)
    F.cross_entropy(model.classifier(["red", "green", "blue", "grey"], ["{}"])(x), y).backward()
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
    with prompt.on_tokens(clip.visual):
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
