"""Recipes: pages of a notebook that say where they come from, what they cost and what they gave."""

import math
from dataclasses import replace

import pytest

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.base.values import key
from robustclip.data.world import SETS
from robustclip.defenses import FAP, FARE, HalfTeCoA, TeCoA
from robustclip.models import checkpoints, zoo
from robustclip.models.dress import JointTokens, TokenPrompt
from robustclip.training.compatible import check_pair
from robustclip.training.installing import install
from robustclip.training.recipes import RECIPES, named
from robustclip.training.recipes_prompts import EMBEDDED_PROMPTS
from robustclip.training.trainables import VisualTower


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete_and_possible(name):
    recipe, config = named(name), named(name).config
    assert recipe.about.endswith(".")
    assert all((recipe.cost, recipe.published, recipe.measured))
    assert config.optim.batch % config.optim.micro_batch == 0
    assert config.data.n is None or config.data.per_class is None
    if config.data.name in SETS:
        assert (config.data.n or 1) + config.data.held_out <= config.data.rendered
        assert config.data.n is None or config.data.n >= config.optim.batch
        assert config.model in checkpoints.embedded() or config.model == "tiny-vit8"
    assert config.validation.images <= config.data.held_out
    assert "{}" in "".join(config.templates or ("{}",))


def test_recipes_are_different_work():
    assert len({key(recipe.config) for recipe in RECIPES.values()}) == len(RECIPES)


def test_tecoa_is_the_papers():
    """Section 4: eps 1/255, 2 steps of 1/255, SGD 1e-5 with momentum 0.9, warm-up 1000, 10 epochs of batch 256, one template."""
    config = RECIPES["tecoa-b32"].config
    ball, optim = config.threat.image, config.optim
    assert (ball.norm, ball.eps, config.attack.steps) == ("Linf", 1.0, 2)
    assert math.isclose(config.attack.alpha * ball.radius, 1 / 255)
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay, optim.warmup, optim.epochs, optim.batch) == (
        "sgd", 1e-5, 0.9, 0.0, 1000, 10, 256,
    )  # fmt: skip
    assert config.templates == ("This is a photo of a {}",)
    assert config.model == "open_clip:ViT-B-32-quickgelu/openai"
    zoo.check(config.model)
    assert config.data.resize == 256


def test_the_prompt_of_tecoa_is_the_papers():
    """Section A.6: 200 tokens, lr 40, all else as in the fine-tuning."""
    tower, tokens = RECIPES["tecoa-b32"].config, RECIPES["tecoa-vp-b32"].config
    assert tokens == replace(tower, trainable=TokenPrompt(200), optim=replace(tower.optim, lr=40.0))


@pytest.mark.parametrize(("name", "eps"), [("fare-b32", 4), ("fare-b32-eps1", 1), ("fare-l14-eps2", 2), ("fare-l14-eps4", 4)])
def test_fare_is_the_papers(name, eps):
    """Section 4 of fare.md: 10 steps of 1/255 at any eps, AdamW 1e-5 with decay 1e-4, warm-up 1400, 2 epochs of batch 128, fp32."""
    config = RECIPES[name].config
    ball, optim = config.threat.image, config.optim
    assert (ball.norm, ball.eps, config.attack.steps, config.attack.precision) == ("Linf", eps, 10, "fp32")
    assert math.isclose(config.attack.alpha * ball.radius, 1 / 255)
    assert (optim.name, optim.lr, optim.weight_decay, optim.betas, optim.warmup, optim.epochs, optim.batch, optim.ema, optim.precision) == (
        "adamw", 1e-5, 1e-4, (0.9, 0.999), 1400, 2, 128, 0.0, "fp32",
    )  # fmt: skip
    assert config.defense == FARE("l2", 0.0, "original")
    assert config.trainable == VisualTower()


@pytest.mark.parametrize("name", ["advvp-b32", "advvlp-b32", "advmaple-b32", "advtp-b32", "fap-b32"])
def test_prompts_of_fap_are_the_papers(name):
    """App. C.1: 16 images a class, batch 4, 10 epochs, SGD 0.0035 with momentum 0.9 and decay 5e-4, PGD-2 of 1/255, no augmentation."""
    config = RECIPES[name].config
    ball, optim, data = config.threat.image, config.optim, config.data
    assert (ball.norm, ball.eps, config.attack.steps, config.attack.alpha) == ("Linf", 1.0, 2, 1.0)
    assert (data.name, data.per_class, data.augment) == ("imagenet", 16, "none")
    assert (optim.name, optim.momentum, optim.epochs, optim.batch, optim.micro_batch) == ("sgd", 0.9, 10, 4, 4)
    fine = (40.0, 5e-4, 0) if name == "advvp-b32" else (0.0035, 5e-4, 16 * 1000 // 4)
    assert (optim.lr, optim.weight_decay, optim.warmup) == fine
    assert config.defense == (FAP(1.5, "prompted") if name == "fap-b32" else TeCoA())
    assert config.model == "open_clip:ViT-B-32-quickgelu/openai"


@pytest.mark.parametrize(
    ("name", "design"),
    [("advvpt-b16", "visual"), ("advvpt-b32", "visual"), ("advvlp-b16", "independent"), ("advmaple-b16", "text to visual")],
)
def test_prompts_of_tapt_are_the_papers(name, design):
    """Stage 0: 16 images a class, 100 epochs of batch 32, SGD 0.0035, decay 5e-4, half of each batch attacked, crops and flips."""
    config = RECIPES[name].config
    optim, data = config.optim, config.data
    assert (config.defense, config.trainable) == (HalfTeCoA(), JointTokens(design, 2, 9))
    assert (config.threat.image.eps, config.attack.steps, config.attack.alpha) == (1.0, 2, 1.0)
    assert (data.per_class, data.augment, config.templates) == (16, "crop and flip", ("a photo of a {}.",))
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay, optim.warmup, optim.epochs, optim.batch, optim.micro_batch) == (
        "sgd", 0.0035, 0.9, 5e-4, 16 * 1000 // 32, 100, 32, 32,
    )  # fmt: skip
    assert config.model == f"open_clip:ViT-B-{name[-2:]}-quickgelu/openai"
    zoo.check(config.model)


def test_apt_is_the_papers():
    """16 words at random in the place of X, 3 steps of 2/3 eps at eps 4/255, SGD 0.002, batch 32, crops and flips."""
    config = RECIPES["apt-b32"].config
    assert (config.threat.image.eps, config.attack.steps, config.attack.alpha) == (4.0, 3, 2 / 3)
    assert (config.optim.name, config.optim.lr, config.optim.batch, config.data.augment) == ("sgd", 0.002, 32, "crop and flip")
    tokens = config.trainable
    assert (tokens.design, tokens.tokens, tokens.depth, tokens.start) == ("text", 16, 1, "random")
    assert tokens.template == " ".join(["X"] * 16 + ["{}."])
    assert config.validation.eps == 4.0


@pytest.mark.parametrize("name", EMBEDDED_PROMPTS)
def test_prompts_of_the_embedded_world_fit_its_model(name):
    config = RECIPES[name].config
    check_pair(config.defense, config.trainable)
    _, parameters = install(config.trainable, models.load(config.model), 0, ("red circle",))
    assert len(parameters) > 0


def test_an_unknown_recipe_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match="did you mean demo-tokens"):
        named("demo-token")
