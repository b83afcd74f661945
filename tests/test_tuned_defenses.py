"""Every defence at test time: together as alone, RTPT and TTC by hand, gradients end to end, refusals (numbers as in tapt.md)."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from adapting import FEW, TEMPLATE, tapt, with_tokens
from toys import ids_of

from robustclip.attacks.pgd import logits_of
from robustclip.base.errors import UserError
from robustclip.models.joint import JointPrompt
from robustclip.test_time import DBD, RTPT, TAPT, TPT, TTC, PromptAlign, ViewEnsemble
from robustclip.test_time.rtpt import reliability


@pytest.fixture
def prompted(make_model, pictures, tmp_path):
    """Return a function that gives a classifier with learned tokens (of one block) and the file of its statistics."""
    return partial(with_tokens, make_model, pictures, tmp_path)


def defences(prompted):
    classifier, path = prompted("independent")
    plain = classifier.wearing(None)
    return {
        "tapt": tapt(classifier, path, lr=0.02),
        "tapt, two steps": tapt(classifier, path, lr=0.02, steps=2),
        "tapt-v": tapt(*prompted("visual"), lr=0.02),
        "tapt-vlj": tapt(*prompted("text to visual"), lr=0.02),
        "promptalign": PromptAlign(**FEW, clean=path).classifier(classifier, 0),
        "tpt": TPT(**FEW, lr=0.05).classifier(plain, 0),
        "rtpt": RTPT(**FEW, lr=0.05).classifier(plain, 0),
        "rtpt, augmix": RTPT(**FEW, lr=0.05, augment="augmix").classifier(plain, 0),
        "views": ViewEnsemble(**FEW).classifier(plain, 0),
        "ttc": TTC(threshold=10.0).classifier(plain, 0),
        "dbd": DBD(crops=3, kept=6).classifier(plain, 0),
    }


@pytest.mark.parametrize(
    "name", ["tapt", "tapt, two steps", "tapt-v", "tapt-vlj", "promptalign", "tpt", "rtpt", "rtpt, augmix", "views", "ttc", "dbd"]
)
def test_tapt_item_6_eight_together_are_eight_alone(prompted, pictures, name):
    defence, images, ids = defences(prompted)[name], pictures(8)[0], ids_of(8)
    together = logits_of(defence, images, ids, 8)
    alone = torch.cat([logits_of(defence, images[i : i + 1], ids[i : i + 1], 1) for i in range(8)])
    backwards = logits_of(defence, images.flip(0), ids[::-1], 4).flip(0)
    assert torch.allclose(together, alone, atol=1e-5 * float(together.abs().max()))
    assert torch.allclose(together, backwards, atol=1e-5 * float(together.abs().max()))
    static = logits_of(defence.base, images, ids, 8)
    assert not torch.allclose(together, static, atol=1e-3), "it does something"
    others = logits_of(defence, images, [f"other/{i}" for i in range(8)], 8)
    assert not torch.equal(others, together), "views are keyed by the image's id"
    seeded = logits_of(type(defence.settings)(**vars(defence.settings)).classifier(defence.base, 1), images, ids, 8)
    assert not torch.equal(seeded, together), "and by the seed"


def test_tapt_item_8_rtpt_weights_and_equal_views(prompted, pictures, monkeypatch):
    weights = reliability(F.normalize(torch.randn(3, 8, 5), dim=-1), 20, 0.01)
    assert torch.allclose(weights.sum(1), torch.ones(3))
    basis = torch.eye(3)[None]
    lone = torch.cat([basis[:, :1], basis[:, :1], basis[:, 2:]], 1)  # two equal views and one that resembles none
    assert torch.allclose(reliability(lone, 1, 0.01), torch.tensor([[0.5, 0.5, 0.0]]), atol=1e-6), "a view is no neighbour of itself"
    plain, images = prompted("visual")[0].wearing(None), pictures(2)[0]
    defence = RTPT(**FEW, steps=0).classifier(plain, 0)
    monkeypatch.setattr(defence, "views", lambda images, keys: images[:, None].expand(-1, 8, -1, -1, -1))
    with torch.no_grad():
        assert torch.allclose(defence(images), defence.start(images), atol=1e-4), "equal views are the image itself"


def test_tapt_item_8_ttc(prompted, pictures):
    plain, images = prompted("visual")[0].wearing(None), pictures(4)[0]
    keys = TTC().classifier(plain, 0).of(ids_of(4)).keys

    def moved(**settings):
        return TTC(**settings).classifier(plain, 0).adapt(images, keys, False)

    noise, usual, last = moved(threshold=0.0), moved(threshold=10.0), moved(threshold=10.0, beta=50.0)
    assert torch.equal(noise, moved(threshold=10.0, steps=0)), "not stable, or without a step: the noise alone"
    assert not torch.equal(noise, usual)
    steps = [moved(threshold=10.0, beta=50.0, steps=n) for n in (1, 2)]
    assert torch.allclose(last, steps[1], atol=1e-7), "beta to infinity: the last step alone"
    e = torch.exp(2.0 * torch.arange(3))
    assert torch.allclose(usual, sum(w * d for w, d in zip(e / e.sum(), (noise, *steps), strict=True)), atol=1e-6)
    for delta in (noise, usual, last):
        assert delta.abs().max() <= 4 / 255 + 1e-6
        assert (images + delta).min() >= -1e-6
        assert (images + delta).max() <= 1 + 1e-6
    assert (steps[0] - noise).abs().max() <= 1 / 255 + 1e-6


def test_an_end_to_end_gradient_is_another_and_the_answer_the_same(prompted, pictures):
    images, ids = pictures(4)[0], ids_of(4)
    for name, defence in defences(prompted).items():
        with_, without = (each.of(ids) for each in (defence.end_to_end(), defence))
        x = images.clone().requires_grad_()
        logits = [each(x) for each in (with_, without)]
        scale = float(logits[1].detach().abs().max())
        assert torch.allclose(*logits, atol=2e-4 * scale), name
        g = [torch.autograd.grad(out.logsumexp(1).sum(), x)[0] for out in logits]
        assert (g[1] != 0).any(), name
        assert torch.allclose(*g) == (name == "views"), f"{name}: only where nothing is tuned or chosen by a threshold they are one"


def test_statistics_of_another_model_are_refused(prompted):
    classifier, path = prompted("independent")
    other, _ = prompted("independent", seed=1)
    with pytest.raises(UserError, match="made with CLIP weights of sha256"):
        tapt(other, path)
    with pytest.raises(UserError, match="with 7 tokens"):
        tapt(replace_prompt(classifier), path)


def replace_prompt(classifier):
    """Return the classifier with a prompt of three tokens."""
    more = JointPrompt(classifier.clip, classifier.tokenizer, "visual", 3, 1, TEMPLATE, "random", torch.Generator().manual_seed(0))
    return classifier.wearing(more)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda c, path: TAPT(adversarial=path).classifier(c, 0), "needs the files adversarial clean"),
        (lambda c, path: TAPT(adversarial=path, clean=path, gamma=1.5).classifier(c, 0), "gamma is 1.5"),
        (lambda c, path: TAPT(adversarial=path, clean=path).classifier(c.wearing(None), 0), "this model has none"),
        (lambda c, path: PromptAlign().classifier(c, 0), "needs statistics"),
        (lambda c, path: TPT(views=4), "a share of 0.1 is kept"),
        (lambda c, path: tapt(c, path, views=10, keep=0.1), "1 of 10 views is kept, which has no variance"),
        (lambda c, path: TPT().classifier(c, 0), "wears a prompt in its images"),
    ],
)
def test_what_cannot_be_tuned_is_refused(prompted, make, said):
    with pytest.raises(UserError, match=said):
        make(*prompted("independent"))


def test_one_kind_of_statistics_is_enough_where_the_other_has_no_share(prompted):
    classifier, path = prompted("independent")
    assert [share for share, _ in replace(TAPT(), adversarial=path, gamma=1.0).targets(classifier)] == [1.0]
