"""Two models' logits as one: their mean by hand at every size of images, a gradient through both, a hash and a card of both."""

from functools import partial

import pytest
import torch
from probes import NAMES, TEMPLATES
from tuned import moved, pair, saved_run

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.models import checkpoints
from robustclip.models.dress import TokenPrompt
from robustclip.training.installing import install
from robustclip.training.trainables import VisualTower


@pytest.fixture
def make_pair(make_model, tmp_path):
    """Return a function that gives the folders of a tiny model and of one fine-tuned from it."""
    return partial(pair, make_model, tmp_path)


@pytest.fixture
def unlike(make_model, tmp_path):
    """Return the folders of two models that share nothing: size of images, tower, prompt, logit scale and bias, text tower."""
    prompted, _ = install(TokenPrompt(2), make_model("siglip", 1), 0, [])
    checkpoints.save(make_model("resnet"), str(tmp_path / "a"))
    checkpoints.save(prompted, str(tmp_path / "b"))
    return str(tmp_path / "a"), str(tmp_path / "b")


@pytest.mark.parametrize("size", [16, 20, 32])
def test_logits_are_the_mean_of_both(unlike, pictures, size):
    x, _, _ = pictures(5, size)
    a, b = (models.load(name).classifier(NAMES, TEMPLATES)(x) for name in unlike)
    classifier = models.load(f"ensemble:{','.join(unlike)}").classifier(NAMES, TEMPLATES)
    assert torch.equal(classifier(x), (a + b) / 2)
    assert not torch.allclose(a, b)
    assert torch.equal(models.load(f"ensemble:{','.join(unlike[::-1])}").classifier(NAMES, TEMPLATES)(x), classifier(x))
    assert classifier.class_names == NAMES
    assert not any(module.training for module in classifier.modules())


def test_a_gradient_flows_through_both(unlike, pictures):
    x, labels, _ = pictures(5)

    def gradient(name):
        images = x.clone().requires_grad_(True)
        logits = models.load(name).classifier(NAMES, TEMPLATES)(images)
        return torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), images)[0]

    a, b = (gradient(name) for name in unlike)
    assert a.abs().amax() > 0
    assert b.abs().amax() > 0
    assert torch.allclose(gradient(f"ensemble:{','.join(unlike)}"), (a + b) / 2, atol=1e-6)


def test_the_hash_of_an_ensemble_sees_every_weight_and_prompt_of_both(unlike):
    ensemble = models.load(f"ensemble:{','.join(unlike)}")
    hashes = {ensemble.sha256}
    for part in (ensemble.members[0].clip, ensemble.members[1].clip, ensemble.members[1].prompt):
        next(part.parameters()).data += 1e-3
        hashes.add(ensemble.sha256)
    assert len(hashes) == 4


def test_a_copy_of_an_ensemble_shares_no_weights(unlike):
    ensemble = models.load(f"ensemble:{','.join(unlike)}")
    copied, before = ensemble.copy(), ensemble.sha256
    next(copied.clip.parameters()).data += 1
    assert ensemble.sha256 == before != copied.sha256


def test_the_card_of_an_ensemble_names_what_either_was_trained_on(make_pair, make_model, tmp_path):
    clip, run = make_pair()
    other = saved_run(moved(make_model(), seed=6), tmp_path / "other", clip, run="def", class_names=["cat", "dog"])
    assert models.load(f"ensemble:{run},{other}").card["class_names"] == ["red", "cat", "dog"]


def test_an_ensemble_is_not_trained(unlike):
    ensemble = models.load(f"ensemble:{','.join(unlike)}")
    with pytest.raises(UserError, match="fine-tune one of its models"):
        install(VisualTower(), ensemble, 0, [])


def test_an_ensemble_looks_at_images_as_large_as_its_larger_model_does(unlike):
    for names in (unlike, unlike[::-1]):
        name = f"ensemble:{','.join(names)}"
        assert models.load(name).preprocess.size == models.input_size(name) == 32
