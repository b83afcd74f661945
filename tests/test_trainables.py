"""What learns: the right parameters and no others, fresh from a seed, and refusals with a reason."""

import pytest
import torch

from robustclip.errors import UserError
from robustclip.trainables import TRAINABLES, PadPrompt, TokenPrompt, VisualTower, prompt_of


@pytest.mark.parametrize("kind", TRAINABLES)
def test_only_what_the_trainable_names_can_learn(tiny_model, kind):
    model, parameters = kind().install(tiny_model, seed=0)
    classifier = model.classifier(["a"], ["{}"])
    learning = {name for name, p in classifier.named_parameters() if p.requires_grad}
    assert {id(p) for p in parameters} == {id(p) for p in classifier.parameters() if p.requires_grad}
    prefix = "clip.visual." if kind is VisualTower else "visual_prompt."
    assert learning
    assert all(name.startswith(prefix) for name in learning)
    if kind is VisualTower:
        assert len(learning) == len(list(tiny_model.clip.visual.parameters()))


@pytest.mark.parametrize("trainable", [PadPrompt(3), TokenPrompt(4), TokenPrompt(2, deep=True)], ids=str)
def test_a_start_is_fixed_by_the_seed_and_looks_standard_normal(make_model, trainable):
    starts = [trainable.install(make_model(), seed)[1] for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(starts[0], starts[1]))
    assert not torch.equal(starts[0][0], starts[2][0])
    values = torch.cat([p.detach().flatten() for p in starts[0]])
    assert abs(values.mean()) < 0.3
    assert 0.8 < values.std() < 1.2


@pytest.mark.parametrize("kind", TRAINABLES)
def test_a_prompted_model_is_not_trained_again(tiny_model, kind):
    prompted, _ = PadPrompt(2).install(tiny_model, seed=0)
    with pytest.raises(UserError, match="already has a visual prompt"):
        kind().install(prompted, seed=0)


@pytest.mark.parametrize("trainable", [PadPrompt(0), TokenPrompt(0), TokenPrompt(0, deep=True)], ids=str)
def test_an_empty_prompt_is_refused(tiny_model, trainable):
    with pytest.raises(UserError, match="nothing to learn"):
        trainable.install(tiny_model, seed=0)


def test_tokens_are_refused_where_they_make_no_sense(make_model):
    with pytest.raises(UserError, match="vision transformer"):
        TokenPrompt(2).install(make_model("resnet"), seed=0)
    with pytest.raises(UserError, match=r"trainable\.tokens is -1"):
        TokenPrompt(-1)


@pytest.mark.parametrize("trainable", [PadPrompt(3), TokenPrompt(4), TokenPrompt(2, deep=True)], ids=str)
def test_a_card_says_how_to_build_the_prompt(tiny_model, trainable):
    prompted, parameters = trainable.install(tiny_model, seed=0)
    built = prompt_of(prompted.card, tiny_model)
    assert [p.shape for p in built.parameters()] == [p.shape for p in parameters]
    assert type(built) is type(prompted.visual_prompt)


def test_a_card_without_a_prompt_or_with_a_newer_one(tiny_model):
    assert prompt_of({}, tiny_model) is None
    assert prompt_of({"trainable": {"type": "VisualTower"}}, tiny_model) is None
    for newer in ({"type": "LoRA", "rank": 2}, {"type": "PadPrompt", "pad": 2, "shape": "round"}):
        with pytest.raises(UserError, match="upgrade robustclip"):
            prompt_of({"trainable": newer}, tiny_model)
