"""Prompts of both towers: equal to an independent forward that puts the tokens in by hand, exact in size, plain CLIP when empty."""

from dataclasses import replace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import NAMES, TEMPLATES
from open_clip.transformer import TextTransformer, text_global_pool
from parts import config, learner_of, pixels, step
from torch import nn

from robustclip.base.errors import UserError
from robustclip.defenses import FARE, MMCoA, TeCoA
from robustclip.models.checkpoints import build, save
from robustclip.models.dress import FramedTokens, JointTokens
from robustclip.models.insertion import cut, in_images, in_texts, read_of
from robustclip.models.joint import JointPrompt
from robustclip.names import load
from robustclip.training.installing import install

DESIGNS = ("visual", "text", "independent", "text to visual", "visual to text")
TEMPLATE = "a photo of a {}."


def depth_of(design, most):
    return 1 if design == "text" else most


def prompted(model, design, tokens=2, depth=None, **settings):
    """Return the model wearing a fresh prompt, all of it moved away from its start so that every part matters."""
    trainable = JointTokens(design, tokens, depth or 1, TEMPLATE, **settings)
    worn, parameters = install(trainable, model.copy(), 3, NAMES)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in parameters:
            p += 0.3 * torch.randn(p.shape, generator=g)
    return worn


def visual_by_hand(visual, x, layers):
    """Return the features of images with tokens put in by hand: an independent forward through open_clip's parts."""
    x = visual._embeds(x)
    n = layers[0].shape[-2] if layers else 0
    if n:
        x = torch.cat([x, visual.ln_pre(layers[0]).expand(len(x), -1, -1)], 1)  # ln_pre is per token
    for i, block in enumerate(visual.transformer.resblocks):
        if n and 0 < i < len(layers):
            x = torch.cat([x[:, :-n], layers[i].expand(len(x), -1, -1)], 1)
        x = block(x)
    pooled, _ = visual._pool(x[:, :-n] if n else x)
    return pooled @ visual.proj


def texts_by_hand(clip, ids, layers):
    """Return the features of token ids with tokens put in by hand."""
    x = clip.token_embedding(ids)
    n = layers[0].shape[-2] if layers else 0
    x[:, 1 : 1 + n] = layers[0] if n else x[:, 1:1]
    x = x + clip.positional_embedding
    for i, block in enumerate(clip.transformer.resblocks):
        if 0 < i < len(layers):
            x = torch.cat([x[:, :1], layers[i].expand(len(x), -1, -1), x[:, 1 + n :]], 1)
        x = block(x, attn_mask=clip.attn_mask)
    return text_global_pool(clip.ln_final(x), ids, clip.text_pool_type) @ clip.text_projection


@pytest.fixture
def deep_clip():
    """Return a random CLIP of four blocks in either tower, as a module."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = open_clip.model.CLIPTextCfg(context_length=24, vocab_size=714, width=16, heads=2, layers=4)
        vision = open_clip.model.CLIPVisionCfg(image_size=16, patch_size=8, width=32, layers=4, head_width=16)
        return open_clip.model.CLIP(16, vision, text).eval()


@pytest.mark.parametrize("design", DESIGNS)
def test_tapt_item_2_hooks_equal_a_forward_by_hand(deep_clip, tiny_model, design):
    tower = replace(tiny_model, clip=deep_clip)
    prompt = JointPrompt(deep_clip, tower.tokenizer, design, 2, depth_of(design, 3), TEMPLATE, "random", torch.Generator().manual_seed(0))
    images, ids = torch.rand(3, 3, 16, 16), tower.tokenizer(["a photo of a red.", "a photo of a dark blue thing."])
    with torch.no_grad():
        seen, said = prompt.layers(prompt.state())
        with in_images(deep_clip.visual, seen), in_texts(deep_clip, said):
            features, texts = deep_clip.visual(images), deep_clip.encode_text(ids)
        assert torch.allclose(features, visual_by_hand(deep_clip.visual, images, seen), atol=2e-6)
        assert torch.allclose(texts, texts_by_hand(deep_clip, ids, said), atol=2e-6)
        changed = [not torch.equal(features, deep_clip.visual(images)), not torch.equal(texts, deep_clip.encode_text(ids))]
        assert changed == [design != "text", design != "visual"], "outside the context the towers are plain again"


@pytest.mark.parametrize("design", DESIGNS)
def test_tapt_item_2_no_tokens_are_plain_clip_to_the_bit(tiny_model, pictures, design):
    images = pictures(4)[0]
    plain = tiny_model.classifier(NAMES, (TEMPLATE,))
    g = torch.Generator().manual_seed(0)
    empty = JointPrompt(tiny_model.clip, tiny_model.tokenizer, design, 0, 1, TEMPLATE, "random", g)
    worn = replace(tiny_model, prompt=empty).classifier(NAMES, (TEMPLATE,))
    with torch.no_grad():
        assert torch.equal(worn(images), plain(images))


@pytest.mark.parametrize("kind", ["vit", "siglip", "timm"])
@pytest.mark.parametrize("design", ["text", "independent"])
def test_words_as_a_start_leave_the_texts_as_they_were(make_model, design, kind):
    model = make_model(kind)
    worn, _ = install(JointTokens(design, 3, 1, TEMPLATE), model.copy(), 0, NAMES)
    classifier = worn.classifier(NAMES, TEMPLATES)
    assert classifier.templates == (TEMPLATE,), "the prompt brings its own words"
    assert torch.equal(classifier.class_embeddings, model.classifier(NAMES, (TEMPLATE,)).class_embeddings)


def test_tapt_item_2_parameter_counts_are_the_published_ones():
    with torch.device("meta"):
        clip = build({"model_cfg": open_clip.get_model_config("ViT-B-16-quickgelu")})

    def words(texts):
        ids = [[1, *range(5, 5 + text.count(" ") + (text != "") * 1), 2] for text in texts]
        return torch.tensor([row + [0] * (77 - len(row)) for row in ids])

    clip.token_embedding = nn.Embedding(10, 512)
    counts = {"visual": 13_824, "independent": 23_040, "text to visual": 3_555_072, "visual to text": 3_557_120}
    for design, count in counts.items():
        prompt = JointPrompt(clip, words, design, 2, 9, TEMPLATE, "words", torch.Generator().manual_seed(0))
        assert sum(p.numel() for p in prompt.parameters()) == count, design
    context = JointPrompt(clip, words, "text", 2, 1, TEMPLATE, "words", torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in context.parameters()) == 1024


def test_tapt_item_6_rows_of_a_batch_may_have_tokens_of_their_own(deep_clip, tiny_model):
    prompt = JointPrompt(deep_clip, tiny_model.tokenizer, "text to visual", 2, 3, TEMPLATE, "random", torch.Generator().manual_seed(0))
    images, g = torch.rand(4, 3, 16, 16), torch.Generator().manual_seed(2)
    with torch.no_grad():
        batched = {name: p + 0.1 * torch.randn(4, *p.shape, generator=g) for name, p in prompt.state().items()}
        with in_images(deep_clip.visual, prompt.layers(batched)[0]):
            together = deep_clip.visual(images)
        for i in range(4):
            with in_images(deep_clip.visual, prompt.layers({name: p[i] for name, p in batched.items()})[0]):
                assert torch.allclose(deep_clip.visual(images[i : i + 1])[0], together[i], atol=1e-6)


def test_blocks_are_seen_with_the_tokens_in_them(deep_clip):
    seen = {}
    layers = [torch.full((2, 32), float(i)) for i in (1, 2, 3)]
    with torch.no_grad(), in_images(deep_clip.visual, layers, lambda i, x: seen.setdefault(i, x)):
        deep_clip.visual(torch.rand(2, 3, 16, 16))
    assert [x.shape for x in seen.values()] == [(2, 1 + 4 + 2, 32)] * 4
    assert torch.equal(seen[0][:, -2:], deep_clip.visual.ln_pre(layers[0]).expand(2, -1, -1)), "block 0 sees the output of ln_pre"
    assert torch.equal(seen[2][:, -2:], layers[2].expand(2, -1, -1))
    assert not torch.equal(seen[3][:, -2:], layers[2].expand(2, -1, -1)), "behind the last layer they flow on"


@pytest.mark.parametrize("kind", ["vit", "siglip"])
def test_tapt_item_7_texts_cut_to_their_length_say_the_same(make_model, kind):
    model = make_model(kind)
    texts = ["a photo of a red.", "a photo of a grey blue green one!?"]
    ids = model.tokenizer(texts)
    assert 0 in ids[1, : int(ids[1].argmax())], "CLIP's token 0, which fills texts up, is an exclamation mark too"
    read = read_of(model.clip, ids)
    ends = (ids.argmax(1) + 1).tolist()
    assert read.tolist() == (ends if kind == "vit" else [ids.shape[1]] * 2), "who speaks by the last token reads all of the context"
    length = int(read.max())
    with torch.no_grad():
        whole = model.clip.encode_text(ids)
        with cut(model.clip, length):
            short = model.clip.encode_text(ids[:, :length])
        assert torch.allclose(short, whole, atol=1e-6)
        assert torch.equal(model.clip.encode_text(ids), whole), "the tower is whole again"
        if kind == "vit":
            with cut(model.clip, length - 1), pytest.raises(RuntimeError):
                model.clip.encode_text(ids)


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ({}, [3, 5]),
        ({"pool_type": "eos", "eos_id": 2}, [4, 6]),
        ({"pool_type": "last"}, [8, 8]),
        ({"no_causal_mask": True}, [8, 8]),
        ({"embed_cls": True}, [8, 8]),
    ],
)
def test_what_a_text_tower_reads_is_all_that_its_features_depend_on(kind, read):
    torch.manual_seed(0)
    clip = torch.nn.Module()
    clip.text = TextTransformer(context_length=8, vocab_size=40, width=16, heads=2, layers=2, **kind).eval()
    ids = torch.tensor([[1, 5, 39, 2, 0, 0, 0, 0], [1, 5, 7, 9, 39, 2, 0, 0]])
    assert read_of(clip, ids).tolist() == read
    with torch.no_grad(), cut(clip, max(read)):
        short = clip.text(ids[:, : max(read)])
    with torch.no_grad():
        assert torch.allclose(short, clip.text(ids), atol=1e-6)


@pytest.mark.parametrize("design", DESIGNS)
def test_every_design_learns_is_saved_and_comes_back(make_model, pictures, tmp_path, design):
    images, labels, ids = pictures(16)
    learner = learner_of(make_model("vit"), config(TeCoA(), JointTokens(design, 2, 1), lr=0.05), steps=10)
    start = [p.detach().clone() for p in learner.parameters]
    before = learner.student.class_embeddings.clone()
    losses = [step(learner, (pixels(images), labels, ids), 8)["loss"] for _ in range(10)]
    assert losses[-1] < losses[0]
    assert all(not torch.equal(p, old) for p, old in zip(learner.parameters, start, strict=True)), "every tensor moves"
    assert torch.equal(learner.student.class_embeddings, before) == (design == "visual")
    assert all(not p.requires_grad for p in learner.model.clip.parameters()), "CLIP is frozen"
    learner.finish()
    save(learner.model, str(tmp_path / "m"), trainable={"type": "JointTokens", "design": design, "tokens": 2, "depth": 1})
    again = load(str(tmp_path / "m")).classifier(NAMES, TEMPLATES)
    with torch.no_grad():
        assert torch.equal(again(images), learner.model.classifier(NAMES, TEMPLATES)(images))


def test_micro_batches_add_up_where_texts_learn(make_model, pictures):
    """The texts are computed anew for every micro-batch: their gradient is that of the whole batch."""
    images, labels, ids = pictures(16)
    grads = []
    for micro_batch in (16, 4):
        learner = learner_of(make_model("vit"), config(TeCoA(), JointTokens("independent", 2, 1), batch=16, micro_batch=micro_batch))
        for part in torch.arange(16).split(micro_batch):
            learner.accumulate(pixels(images)[part], labels[part], [ids[i] for i in part])
            assert not learner.student.class_embeddings.requires_grad
        grads.append(torch.cat([p.grad.flatten() for p in learner.parameters]))
    largest = grads[0].abs().max()
    assert largest > 1e-4
    assert torch.allclose(*grads, rtol=0, atol=1e-5 * largest)


def test_a_frame_may_be_worn_with_the_tokens(make_model, pictures):
    images = pictures(4)[0]
    model = make_model("vit")
    both, parameters = install(FramedTokens(3, 2), model.copy(), 0, NAMES)
    assert sum(p.numel() for p in parameters) == 3 * 32 + 3 * (16**2 - 12**2)
    features = both.classifier(NAMES, TEMPLATES).features(images)
    pad, tokens = both.prompt.parts
    for part in (pad, tokens):
        alone = replace(model, prompt=part).classifier(NAMES, TEMPLATES).features(images)
        assert not torch.allclose(features, alone)
    with torch.no_grad():
        pad.rows.zero_()
        pad.columns.zero_()
    worn = replace(model, prompt=tokens).classifier(NAMES, TEMPLATES)
    assert torch.equal(both.classifier(NAMES, TEMPLATES).features(images), worn.features(images))


@pytest.mark.parametrize(
    ("kind", "trainable", "said"),
    [
        ("vit", JointTokens("independent", 2, 9), r"trainable\.depth is 9: these towers allow 1 to 1"),
        ("vit", JointTokens("text", 19, 1), r"trainable\.tokens is 19, but .* has \d+ tokens in front of the class name"),
        ("vit", JointTokens("text", 1, 1, "a photo"), r"trainable\.template is 'a photo'"),
        ("vit", JointTokens("text", 0, 1), "of size 0 leaves nothing to learn"),
        ("resnet", JointTokens("visual", 2, 1), r"need a vision transformer.*ModifiedResNet"),
    ],
    ids=str,
)
def test_prompts_that_do_not_fit_are_refused(make_model, kind, trainable, said):
    with pytest.raises(UserError, match=said):
        install(trainable, make_model(kind), 0, NAMES)


def test_settings_that_there_are_not_are_refused():
    for settings, said in (({"design": "both"}, "trainable.design"), ({"start": "zero"}, "trainable.start"), ({"tokens": -1}, "tokens")):
        with pytest.raises(UserError, match=said):
            JointTokens(**settings)


@pytest.mark.parametrize(
    ("defense", "design", "said"), [(FARE(), "text", "works on the features"), (MMCoA(), "independent", "trains the towers")]
)
def test_losses_that_tokens_in_texts_cannot_serve_are_refused(make_model, defense, design, said):
    with pytest.raises(UserError, match=said):
        learner_of(make_model("vit"), config(defense, JointTokens(design, 2, 1), lr=0.1))


def test_class_embeddings_follow_the_tokens_after_a_step(make_model, pictures):
    """What the next attack meets is what the texts say now."""
    images, labels, ids = pictures(8)
    learner = learner_of(make_model("vit"), config(TeCoA(), JointTokens("text", 2, 1), batch=8))
    step(learner, (pixels(images), labels, ids))
    with torch.no_grad():
        now = F.normalize(learner.student.embed_texts(list(learner.student.texts)), dim=-1)
    assert torch.allclose(learner.student.class_embeddings, now, atol=1e-6)
