"""Recipes: named configs, each a page of a notebook: where it comes from, how to run it, what it costs, what it gave."""

from dataclasses import replace
from typing import Any

from robustclip.attacks.text.search import TextAttack
from robustclip.base.errors import UserError, did_you_mean
from robustclip.base.threat import Ball, ThreatModel
from robustclip.defenses import (
    FARE,
    LEAF,
    PMGAFT,
    TRADES,
    CleanCE,
    CleanContrastive,
    CoAdv,
    Defense,
    ImgCoAdv,
    LinearAT,
    MMCoA,
    PseudoTeCoA,
)
from robustclip.models.dress import LinearHead, PixelPrompt, TokenPrompt
from robustclip.training.config import Config, Data, InnerAttack, Optim, Validation
from robustclip.training.recipe import DEMO, NOT_RUN, TECOA, Recipe, demo
from robustclip.training.recipes_prompts import EMBEDDED_PROMPTS, PUBLISHED_PROMPTS
from robustclip.training.trainables import LoRA, Towers

# TeCoA's own comparison, each for the whole tower ("demo-adv") and for deep prompt tokens ("demo-deep-adv").
COMPARED: dict[str, tuple[Defense, str]] = {
    "ce": (CleanCE(), "Clean fine-tuning, (CE) of TeCoA's tables: the control"),
    "adv": (LinearAT(), "Standard adversarial training with a linear head in two stages, (Adv.) of TeCoA's tables"),
    "coadv": (CoAdv(0.1), "Contrastive adversarial training with random codes for classes, (CoAdv.) of TeCoA's tables"),
    "imgcoadv": (ImgCoAdv(), "Contrastive adversarial training between two views, (ImgCoAdv.) of TeCoA's tables"),
    "pseudo": (PseudoTeCoA(), "TeCoA without labels: CLIP's own predictions on the clean images stand in for them"),
}
DEEP: dict[str, Any] = {"trainable": TokenPrompt(tokens=8, deep=True), "optim": replace(DEMO.optim, lr=1e-2, weight_decay=0.0)}

# Both towers for MMCoA and its baselines, and one template as published: every step encodes the prompts of all classes anew. Those of the
# batch's classes are rewritten at every step; a character, for which a prompt has about a hundred candidates, into all of them every 50.
ONE: dict[str, Any] = {"templates": ("a photo of a {}.",)}
BOTH: dict[str, Any] = {"trainable": Towers(), "optim": replace(DEMO.optim, lr=1e-3)} | ONE
WORDS = MMCoA()

# Captions of a class as the corpus words them, each opening with and without a background: the tiny text tower has read nothing longer.
OPENINGS = ("a photo of a", "a picture of a", "an image of a", "a drawing of a", "a")
BACKGROUNDS = ("white", "black", "gray", "striped white", "dotted black")
CAPTIONS = (
    *(f"{opening} {{}}." for opening in OPENINGS),
    *(f"{opening} {{}} on a {background} background." for opening, background in zip(OPENINGS, BACKGROUNDS, strict=True)),
)

EMBEDDED: dict[str, Recipe] = {
    "demo": replace(
        demo("TeCoA (Mao et al. 2023) on the embedded world: the whole visual tower, 288 classes of coloured pictograms."),
        cost="about a minute on one core",
        measured="the table of robustclip sweep, see README",
    ),
    "demo-tokens": demo(
        "TeCoA's visual prompt tuning in small: 8 shallow tokens in front of the frozen ViT.",
        trainable=TokenPrompt(tokens=8),
        optim=replace(DEMO.optim, lr=1e-2, weight_decay=0.0),
    ),
    "demo-deep": demo(
        "TeCoA with deep visual prompts: 8 tokens in front of every block of the frozen ViT.",
        **DEEP,
    ),
    "demo-pad": demo(
        "TeCoA's pixel prompt in small: a learnable frame of 4 px around the 32 px image.",
        trainable=PixelPrompt("pad", 4),
        optim=replace(DEMO.optim, name="sgd", lr=1.0, weight_decay=0.0),
    ),
    "demo-lora": demo(
        "TeCoA with low-rank changes of rank 8 in every block of the ViT.",
        trainable=LoRA(rank=8, alpha=8.0),
        optim=replace(DEMO.optim, lr=3e-3, weight_decay=0.0),
    ),
    **{f"demo-{name}": demo(f"{about}; the whole visual tower.", defense) for name, (defense, about) in COMPARED.items()},
    **{f"demo-deep-{name}": demo(f"{about}; deep prompt tokens.", defense, **DEEP) for name, (defense, about) in COMPARED.items()},
    "demo-lp": demo(
        "A linear probe, LP(CE) of TeCoA's tables: it knows the classes of its data set only, so name the set: --data.name.",
        CleanCE(),
        trainable=LinearHead(),
        optim=replace(DEMO.optim, lr=1e-2, weight_decay=0.0),
    ),
    # Of 3e-4, 1e-3 and 3e-3, the rate with the best val/robust for both.
    "demo-fare": demo(
        "FARE (Schlarmann et al. 2024) on the embedded world: no labels, no texts.", FARE(), optim=replace(DEMO.optim, lr=3e-3)
    ),
    "demo-pmg": demo("PMG-AFT (Wang et al. 2024) on the embedded world.", PMGAFT(), optim=replace(DEMO.optim, lr=3e-3)),
    "demo-contrastive": demo(
        "Clean contrastive fine-tuning of both towers, nothing attacked: the baseline of MMCoA.", CleanContrastive(), **BOTH
    ),
    "demo-mmcoa": demo(
        "MMCoA (Zhou et al. 2024) on the embedded world: both towers, words from the token embedding's neighbours.", WORDS, **BOTH
    ),
    "demo-mmcoa-text": demo("MMCoA with rewritten prompts alone.", replace(WORDS, lambda_img=0.0), **BOTH),
    "demo-mmcoa-image": demo("MMCoA with attacked images alone.", replace(WORDS, lambda_txt=0.0), **BOTH),
    "demo-leaf": demo(
        "LEAF (Abad Rocamora et al. 2025) on the embedded world: a text tower robust to one character; with FARE as towers:A,B.",
        LEAF(refresh=50),
        trainable=Towers("text"),
        optim=replace(DEMO.optim, weight_decay=0.0),
        **ONE,
    ),
    "demo-saft": demo(
        "SAFT-like (Zhang et al. 2026, arXiv:2602.12461) on the embedded world: attack and loss meet the mean of ten texts of each class. "
        "Ours: its texts are captions of this world, no language model's sentences, and the mean is normalised.",
        templates=CAPTIONS,
    ),
    "demo-trades": demo("TRADES (Zhang et al. 2019) on CLIP's class scores, on the embedded world.", TRADES()),
    **EMBEDDED_PROMPTS,
    "smoke": Recipe(
        config=Config(
            threat=ThreatModel(image=Ball("Linf", 2.0)),
            attack=InnerAttack(steps=1),
            optim=Optim(epochs=2, batch=16, micro_batch=8),
            data=Data(n=64, held_out=16, rendered=128),
            validation=Validation(images=16, steps=2),
            checkpoint_every=2,
        ),
        about="The smallest run that goes through everything: for tests and for trying a change.",
        cost="seconds",
    ),
}

# --- as published: these need a prepared set `imagenet` (or `tinyimagenet`), weights from a model hub, and a GPU ------

TECOA_PROMPT = replace(TECOA, trainable=TokenPrompt(tokens=200), optim=replace(TECOA.optim, lr=40.0))
# Two epochs of ImageNet, 5,000 images of it held out, are 19,940 steps of 128 (the paper: 20,000).
FARE_B32 = Config(
    model="open_clip:ViT-B-32-quickgelu/openai",
    data=Data(name="imagenet", held_out=5000, resize=224),
    defense=FARE(),
    threat=ThreatModel(image=Ball("Linf", 4.0)),
    attack=InnerAttack(steps=10, alpha=0.25),
    optim=Optim(name="adamw", lr=1e-5, weight_decay=1e-4, warmup=1400, epochs=2, batch=128, micro_batch=64),
    validation=Validation(images=1000, eps=4.0),
    templates=("This is a photo of a {}",),
    checkpoint_every=200,
)
MMCOA = replace(
    TECOA,
    defense=MMCoA(),
    trainable=Towers(logit_scale="clamped"),
    attack=InnerAttack(steps=10, alpha=1.0),
    optim=Optim(
        lr=1e-6, weight_decay=0.2, betas=(0.9, 0.98), epochs=30, batch=256, micro_batch=64, schedule="constant",
    ),
)  # fmt: skip
# As the published code trains, its accidents included; its words come from BERT one row too early (a table made with --cls-offset 0).
MMCOA_REF = replace(
    MMCOA,
    defense=MMCoA(text=TextAttack(order="greedy"), leak_attack_grads=True),
    trainable=Towers(logit_scale="trainable"),
    optim=replace(MMCOA.optim, name="adam", eps=1e-6),
)
TECOA_CODE = "arXiv:2212.07016, section 4 and A.6"
FARE_CODE = "arXiv:2402.12336, App. B.1"


def at(config: Config, eps: float, model: str | None = None) -> Config:
    """Return FARE's recipe at another eps (its step is 1/255 at each) or for another model."""
    attack = replace(config.attack, alpha=1.0 / eps)
    return replace(config, threat=ThreatModel(image=Ball("Linf", eps)), attack=attack, model=model or config.model)


L14 = "open_clip:ViT-L-14-quickgelu/openai"
AVERAGE_16 = "mean of 16 sets: clean {}, robust {} (PGD-100, eps 1/255; Tables 1 and 3)"

PUBLISHED: dict[str, Recipe] = {
    "tecoa-b32": Recipe(
        TECOA,
        f"TeCoA's fine-tuning as published ({TECOA_CODE}): ImageNet, eps 1/255, 2 steps.",
        "12-16 h on one H100, as a third party reports; not run by us",
        AVERAGE_16.format("55.97", "38.18"),
    ),
    "tecoa-vp-b32": Recipe(
        TECOA_PROMPT,
        f"TeCoA's visual prompt tuning as published ({TECOA_CODE}): 200 tokens, lr 40; their defaults train a frame of 30 px as well.",
        NOT_RUN,
        AVERAGE_16.format("53.00", "32.00"),
    ),
    "tecoa-pad-b32": Recipe(
        replace(TECOA_PROMPT, trainable=PixelPrompt("pad", 30)),
        "TeCoA with a frame of 30 px (69,840 parameters); the paper does not give the size behind its Fig. 6a.",
        NOT_RUN,
        "image prompt: robust 20.51 (Fig. 6)",
    ),
    "tecoa-unlabelled-b32": Recipe(
        replace(TECOA, defense=PseudoTeCoA()),
        "TeCoA without labels (arXiv:2212.07016, Table 2 and Alg. 5).",
        NOT_RUN,
        AVERAGE_16.format("56.30", "36.63 (Table 2)"),
    ),
    "ce-b32": Recipe(
        replace(TECOA, defense=CleanCE()),
        "Clean fine-tuning, FT(CE) of TeCoA's tables, with the texts as classifier.",
        NOT_RUN,
        AVERAGE_16.format("63.90", "14.98"),
    ),
    "adv-b32": Recipe(
        replace(TECOA, defense=LinearAT()),
        "Adversarial training with a linear head, FT(Adv.); the paper gives neither its rate nor the head's training.",
        NOT_RUN,
        AVERAGE_16.format("18.49", "10.62"),
    ),
    "coadv-b32": Recipe(
        replace(TECOA, defense=CoAdv()),
        "Random codes for classes, FT(CoAdv.); temperature not given in the paper.",
        NOT_RUN,
        AVERAGE_16.format("13.25", "7.83"),
    ),
    "imgcoadv-b32": Recipe(
        replace(TECOA, defense=ImgCoAdv()),
        "Two views of an image, FT(ImgCoAdv.); views and temperature not given in the paper.",
        NOT_RUN,
        AVERAGE_16.format("8.45", "4.65"),
    ),
    "fare-b32": Recipe(
        FARE_B32,
        f"FARE4 for ViT-B/32 ({FARE_CODE}): ImageNet without labels, 10 steps of 1/255, 20,000 steps of 128.",
        NOT_RUN,
        "mean of 13 sets at clean/1/2/4: 48.6 / 40.6 / 33.7 / 21.9 (RobustVLM README)",
    ),
    "fare-b32-eps1": Recipe(at(FARE_B32, 1.0), f"FARE1 for ViT-B/32 ({FARE_CODE}).", NOT_RUN, "60.5 / 38.0 / 20.1 / 2.9 (Table 10)"),
    "fare-l14-eps2": Recipe(
        at(FARE_B32, 2.0, L14), f"FARE2 for ViT-L/14 ({FARE_CODE}).", NOT_RUN, "13 sets at clean/2/4: 67.0 / 43.1 / 20.5 (Table 4)"
    ),
    "fare-l14-eps4": Recipe(
        at(FARE_B32, 4.0, L14), f"FARE4 for ViT-L/14 ({FARE_CODE}).", NOT_RUN, "13 sets at clean/2/4: 61.1 / 45.9 / 32.4 (Table 4)"
    ),
    "mmcoa-b32": Recipe(
        MMCOA,
        "MMCoA (arXiv:2404.19287) on ImageNet, both towers; words from the token embedding unless --table gives BERT's.",
        NOT_RUN,
        "its tables were not at hand",
    ),
    "mmcoa-ref-b32": Recipe(
        MMCOA_REF,
        "MMCoA as its published code trains: the attack's own gradients added, Adam with coupled decay, greedy words, a free logit_scale.",
        NOT_RUN,
        "its tables were not at hand",
    ),
    "pmg-b32": Recipe(
        replace(
            TECOA,
            data=Data(name="tinyimagenet", held_out=2000, resize=256),
            defense=PMGAFT(),
            optim=replace(TECOA.optim, lr=5e-5),
        ),
        "PMG-AFT for ViT-B/32 (arXiv:2401.04350): Tiny-ImageNet, lr 5e-5 as in its code, eps 1/255 and 2 steps as TeCoA's.",
        NOT_RUN,
        "Tiny-ImageNet and 15 sets: clean 46.60, robust 32.51 (PGD-100, eps 1/255; as TGA-ZSR's table gives it)",
    ),
    **PUBLISHED_PROMPTS,
}
RECIPES: dict[str, Recipe] = EMBEDDED | PUBLISHED


def named(name: str) -> Recipe:
    """Return the recipe `name`; raises UserError with a suggestion for an unknown one."""
    if name not in RECIPES:
        raise UserError(f"no recipe {name!r}{did_you_mean(name, RECIPES)}; there are {', '.join(RECIPES)}")
    return RECIPES[name]
