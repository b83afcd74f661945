"""The attacked and scored module: logits by their definition, everything inside the graph, prompts checked."""

import gc
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.models.class_texts import Descriptions
from robustclip.models.classifier import Embeddings, Preprocess, ZeroShotClassifier, check_prompts, embeddings_kept
from robustclip.models.dress import JointTokens


class Pixels(torch.nn.Module):
    """A tower that returns the pixels it sees."""

    def forward(self, x):
        return x.flatten(1)


class Probe(torch.nn.Module):
    """A CLIP whose image features are the normalised pixels and whose text features are fixed."""

    def __init__(self, size):
        super().__init__()
        self.visual, self.logit_scale = Pixels(), torch.nn.Parameter(torch.tensor(2.0))
        self.size = size

    def encode_text(self, tokens):
        return torch.randn(len(tokens), 3 * self.size**2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def probe():
    preprocess = Preprocess(4, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    return ZeroShotClassifier(Probe(4), lambda texts: torch.zeros(len(texts), 1, dtype=torch.long), preprocess, ["a", "b"], ["{}"])


def seen(classifier, images):
    """Return the pixels the probe's tower sees."""
    features = []
    handle = classifier.clip.visual.register_forward_hook(lambda module, args, output: features.append(args[0]))
    classifier(images)
    handle.remove()
    return features[0]


@pytest.mark.parametrize("kind", ["vit", "resnet", "siglip"])
def test_logits_are_scaled_cosines_with_the_mean_prompt(make_model, pictures, kind):
    model = make_model(kind)
    x, _, _ = pictures(5, model.preprocess.size)
    names, templates = ["red", "a {} brace"], ["a photo of a {}.", "{}"]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.preprocess.mean, model.preprocess.std))
    with torch.no_grad():
        z = F.normalize(model.clip.encode_image((x - mean) / std), dim=-1)
        t = [F.normalize(model.clip.encode_text(model.tokenizer([s.replace("{}", name) for s in templates])), dim=-1) for name in names]
        t = torch.stack([F.normalize(per.mean(0), dim=-1) for per in t])
        expected = model.clip.logit_scale.exp() * z @ t.T + (model.clip.logit_bias if kind == "siglip" else 0)
        torch.testing.assert_close(model.classifier(names, templates)(x), expected)


def test_normalisation_is_by_channel_and_inside(probe):
    x = torch.rand(2, 3, 4, 4)
    expected = torch.stack([(x[:, c] - m) / s for c, (m, s) in enumerate(zip(probe.preprocess.mean, probe.preprocess.std))], 1)
    torch.testing.assert_close(seen(probe, x), expected)


def test_a_resize_is_part_of_the_graph(probe):
    x = torch.rand(2, 3, 12, 12, requires_grad=True)
    assert seen(probe, x).shape == (2, 3, 4, 4)
    (g,) = torch.autograd.grad(probe(x)[:, 0].sum(), x)
    assert g.shape == x.shape
    assert (g != 0).float().mean() > 0.9


def test_an_image_shrinks_with_antialiasing_and_grows_without(probe):
    stripes = (torch.arange(32) % 2).float().expand(1, 3, 32, 32)
    mean, std = probe.mean, probe.std
    assert ((seen(probe, stripes) * std + mean - 0.5).abs() < 0.05).all()  # without antialiasing single stripes would be picked
    flat = torch.full((1, 3, 2, 2), 0.25)
    torch.testing.assert_close(seen(probe, flat) * std + mean, torch.full((1, 3, 4, 4), 0.25))


def test_results_do_not_depend_on_class_order_or_batch_order(tiny_model, pictures):
    x, _, _ = pictures(6)
    with torch.no_grad():
        one = tiny_model.classifier(["red", "green", "blue"], ["a {}."])(x)
        other = tiny_model.classifier(["blue", "red", "green"], ["a {}."])(x.flip(0))
    torch.testing.assert_close(one[:, [2, 0, 1]].flip(0), other)


def test_class_embeddings_need_no_gradient_and_are_no_weights(tiny_classifier):
    assert not tiny_classifier.class_embeddings.requires_grad
    assert not {"class_embeddings", "mean", "std"} & tiny_classifier.state_dict().keys()
    torch.testing.assert_close(tiny_classifier.class_embeddings.norm(dim=1), torch.ones(4))


def test_many_texts_are_embedded_in_parts(tiny_classifier, monkeypatch):
    texts = [f"text {i}" for i in range(7)]
    with torch.no_grad():
        whole = tiny_classifier.embed_texts(texts)
        monkeypatch.setattr("robustclip.models.classifier.TEXT_BATCH", 3)
        torch.testing.assert_close(tiny_classifier.embed_texts(texts), whole)


@pytest.mark.parametrize(
    ("names", "templates", "said"),
    [
        ([], ["{}"], "at least one class name"),
        (["a"], [], "at least one"),
        (["a", " "], ["{}"], "class 1 has an empty name"),
        (["a"], ["a photo"], "exactly once"),
        (["a"], ["{} {}"], "exactly once"),
        (["a"], ["{0} {}"], "exactly once"),
        (["a"], ["{name} of {}"], "exactly once"),
    ],
)
def test_prompts_that_say_nothing_are_refused(tiny_model, names, templates, said):
    with pytest.raises(UserError, match=said):
        check_prompts(names, templates)
    with pytest.raises(UserError, match=said):
        tiny_model.classifier(names, templates)


def test_a_scored_forward_is_bit_for_bit_the_attacked_one():
    """torch's fused attention for inference rounds otherwise: left on, it changes the very logits."""
    classifier = models.load("tiny-vit8").classifier(("red", "green", "blue"), ("a photo of a {}.",))
    images = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    attacked = classifier(images.clone().requires_grad_(True)).detach()
    with torch.no_grad():
        assert torch.equal(classifier(images), attacked)
        assert torch.backends.mha.get_fastpath_enabled()  # as it was before
        normalised = (images - classifier.mean) / classifier.std
        fused = classifier.clip.visual(normalised)
    alone = classifier.clip.visual(normalised.clone().requires_grad_(True)).detach()
    assert not torch.equal(fused, alone)


# --- class embeddings that are kept ---------------------------------------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch):
    """Return a list that grows by one for every time that class prompts are read."""
    found, read = [], ZeroShotClassifier.class_features
    monkeypatch.setattr(ZeroShotClassifier, "class_features", lambda self: found.append(self.texts) or read(self))
    return found


def test_in_an_evaluation_the_same_prompts_of_a_clip_are_read_once(make_model, passes):
    model, other = make_model(), make_model(seed=1)
    with embeddings_kept(Embeddings()):
        first, again = (model.classifier(["a", "b"], ["a {}."]) for _ in range(2))
        assert torch.equal(first.class_embeddings, again.class_embeddings)
        assert len(passes) == 1
        again.class_embeddings.zero_()  # what is kept is not what anybody may change
        assert torch.equal(model.classifier(["a", "b"], ["a {}."]).class_embeddings, first.class_embeddings)
        for whose, names, templates in ((model, ["a", "c"], ["a {}."]), (model, ["a", "b"], ["the {}."]), (other, ["a", "b"], ["a {}."])):
            assert not torch.equal(whose.classifier(names, templates).class_embeddings, first.class_embeddings)
        described = model.classifier(["a", "b"], Descriptions.said({"a": ["a a."], "b": ["a b."]}))
        assert torch.equal(described.class_embeddings, first.class_embeddings), "the same texts"
        assert len(passes) == 4
    model.classifier(["a", "b"], ["a {}."])
    assert len(passes) == 5, "outside, weights may have changed"


def test_tokens_in_texts_are_read_anew(make_model, passes):
    model = make_model()
    worn = replace(model, prompt=JointTokens("text to visual", 2, 1).build(model, 0))
    with embeddings_kept(Embeddings()):
        for _ in range(2):
            worn.classifier(["a", "b"], ["a {}."])
    assert len(passes) == 2


def test_what_is_kept_does_not_keep_a_clip(make_model):
    kept = Embeddings()
    with embeddings_kept(kept):
        make_model().classifier(["a", "b"], ["a {}."])
    gc.collect()
    assert not kept
