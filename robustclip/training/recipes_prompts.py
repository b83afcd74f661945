"""Recipes of learned prompts, few-shot as published and on the embedded world: AdvVP, AdvVPT, AdvVLP, AdvMaPLe, AdvTP, APT and FAP."""

from dataclasses import replace
from typing import Any

from robustclip.base.threat import Ball, ThreatModel
from robustclip.defenses import APT, FAP, Defense, HalfTeCoA, TeCoA
from robustclip.models.dress import FramedTokens, JointTokens
from robustclip.training.config import Config, InnerAttack, Optim
from robustclip.training.recipe import DEMO, NOT_RUN, TECOA, Recipe, demo
from robustclip.training.trainables import Trainable

# --- the embedded world: its images, and a rate that suits AdamW; towers of 3 and 2 blocks allow a depth of 2 ---------

FAST = replace(DEMO.optim, lr=1e-2, weight_decay=0.0)


def small(about: str, trainable: Trainable, defense: Defense | None = None, lr: float = FAST.lr) -> Recipe:
    """Return the demo recipe with prompt tokens."""
    return demo(f"{about}, on the embedded world.", defense, trainable=trainable, optim=replace(FAST, lr=lr))


EMBEDDED_PROMPTS: dict[str, Recipe] = {
    # Pixels need a rate of their own: val/clean and val/robust are 44 and 5 % at 1e-2, 63 and 8 at 3e-2, 69 and 9 at 1e-1
    # (robustclip train demo-advvp --threat.image.eps 2 --validation.eps 2 --optim.lr RATE).
    "demo-advvp": small("AdvVP in small: 8 shallow tokens and a frame of 4 px under TeCoA's loss", FramedTokens(8, 4), lr=1e-1),
    "demo-advvpt": small(
        "AdvVPT in small: visual tokens in two blocks, half of each batch attacked (TAPT's stage 0)",
        JointTokens("visual", 8, 2),
        HalfTeCoA(),
    ),
    "demo-advvlp": small("AdvVLP in small: independent tokens in both towers under TeCoA's loss", JointTokens("independent", 4, 2)),
    "demo-advmaple": small("AdvMaPLe in small: image tokens made of the text's under TeCoA's loss", JointTokens("text to visual", 4, 2)),
    "demo-advtp": small("AdvTP in small: four words in front of the class name under TeCoA's loss", JointTokens("text", 4, 1)),
    "demo-apt": small(
        "APT (Li et al. 2024) in small: a context from a random start; it is for a robust tower, so give one, --model CHECKPOINT",
        JointTokens("text", 4, 1, "X X X X {}.", "random"),
        APT(),
    ),
    "demo-fap": small("FAP (Zhou et al. 2024) in small: text tokens made of the image's", JointTokens("visual to text", 4, 2), FAP()),
}

# --- as published: 16 images of each class of ImageNet ------------------------------------------------------------------
# Ours, where the papers' code differs: its warm-up is one epoch at a constant 1e-5, ours that epoch with a rate that grows by the step; its
# cosine moves by the epoch, ours by the step; its crops are of the whole image, ours of its centre square.


def few_shot(optim: Optim, trainable: Trainable, defense: Defense | None = None, augmented: bool = True, **changes: Any) -> Config:
    """Return TeCoA's threat and attack (2 steps of 1/255 at eps 1/255) on 16 images a class."""
    data = replace(TECOA.data, per_class=16, resize=224, augment="crop and flip" if augmented else "none")
    return replace(
        TECOA, data=data, optim=optim, trainable=trainable, defense=defense or TeCoA(), templates=("a photo of a {}.",), **changes
    )


# 16,000 images are 500 batches of 32 an epoch, 4,000 of 4.
STAGE0 = Optim(name="sgd", lr=0.0035, weight_decay=5e-4, momentum=0.9, warmup=500, epochs=100, batch=32, micro_batch=32)
FEW = Optim(name="sgd", lr=0.0035, weight_decay=5e-4, momentum=0.9, warmup=4000, epochs=10, batch=4, micro_batch=4)
AS_TECOA_PROMPT = replace(FEW, lr=40.0, warmup=0)
TUNE = replace(STAGE0, lr=0.002, epochs=50)
B16 = "open_clip:ViT-B-16-quickgelu/openai"

TAPT = "arXiv:2411.13136, stage 0 of its code"
BASELINE = "as a baseline of FAP (arXiv:2403.14774, App. C.1; 5 epochs across data sets)"
TABLE_8 = "across data sets, after 5 epochs: clean {}, robust {} (PGD-100, eps 1/255; FAP, Table 8)"
TABLE_1 = "mean of 11 sets: clean {}, PGD-100 {}, AutoAttack {} (eps 1/255; TAPT, Tables 1 and 2)"
UNKNOWN = "its tables were not at hand"

VISUAL, BOTH, MAPLE = (JointTokens(design, 2, 9) for design in ("visual", "independent", "text to visual"))
ADVVPT = few_shot(STAGE0, VISUAL, HalfTeCoA())
APT_B32 = few_shot(
    TUNE,
    JointTokens("text", 16, 1, "X " * 16 + "{}.", "random"),
    APT(),
    threat=ThreatModel(image=Ball("Linf", 4.0)),
    attack=InnerAttack(steps=3, alpha=2 / 3),
    validation=replace(TECOA.validation, eps=4.0),
)

PUBLISHED_PROMPTS: dict[str, Recipe] = {
    "advvp-b32": Recipe(
        few_shot(AS_TECOA_PROMPT, FramedTokens(5, 30), augmented=False),
        f"AdvVP {BASELINE}: TeCoA's prompt, 5 tokens and a frame of 30 px, lr 40 without warm-up.",
        NOT_RUN,
        TABLE_8.format("43.69", "13.56"),
    ),
    "advvpt-b16": Recipe(
        replace(ADVVPT, model=B16),
        f"AdvVPT, the start of TAPT-V ({TAPT}; its text says lr 0.035): visual tokens in 9 blocks, half of each batch attacked.",
        NOT_RUN,
        TABLE_1.format("54.5", "20.8", "16.3"),
    ),
    "advvpt-b32": Recipe(
        ADVVPT, f"AdvVPT for ViT-B/32 ({TAPT}; its text says lr 0.035).", NOT_RUN, TABLE_1.format("not at hand", "20.7", "10.5")
    ),
    "advvlp-b16": Recipe(
        few_shot(STAGE0, BOTH, HalfTeCoA(), model=B16),
        f"AdvVLP, the start of TAPT-VLI ({TAPT}): independent tokens in 9 blocks of both towers, half of each batch attacked.",
        NOT_RUN,
        TABLE_1.format("51.0", "22.7", "17.2"),
    ),
    "advvlp-b32": Recipe(
        few_shot(FEW, BOTH, augmented=False),
        f"AdvVLP {BASELINE}: independent tokens in 9 blocks of both towers.",
        NOT_RUN,
        TABLE_8.format("48.22", "23.25"),
    ),
    "advmaple-b16": Recipe(
        few_shot(STAGE0, MAPLE, HalfTeCoA(), model=B16),
        f"AdvMaPLe, the start of TAPT-VLJ ({TAPT}): image tokens made of the text's in 9 blocks, half of each batch attacked.",
        NOT_RUN,
        TABLE_1.format("51.0", "22.0", "15.6"),
    ),
    "advmaple-b32": Recipe(
        few_shot(FEW, MAPLE, augmented=False),
        f"AdvMaPLe {BASELINE}: image tokens made of the text's; FAP's code makes them the other way round, 'visual to text', here too.",
        NOT_RUN,
        TABLE_8.format("48.03", "23.93"),
    ),
    "advtp-b32": Recipe(
        few_shot(FEW, JointTokens("text", 2, 1), augmented=False),
        "AdvTP (also AdvPT), tokens in the texts alone, with the settings of FAP's other baselines (arXiv:2403.14774, App. C.1).",
        NOT_RUN,
        UNKNOWN,
    ),
    "apt-b32": Recipe(
        APT_B32,
        "APT (arXiv:2403.01849): 16 words, 3 steps of 2/3 eps, 50 epochs as its code's ImageNet example; made for a tower that TeCoA made "
        "robust at the same eps, so give one: --model CHECKPOINT.",
        NOT_RUN,
        f"{UNKNOWN}; on plain CLIP it gives nothing (clean 5.8, robust 1.0 as a third party reports)",
    ),
    "fap-b32": Recipe(
        few_shot(FEW, JointTokens("visual to text", 2, 9), FAP(), augmented=False),
        "FAP (arXiv:2403.14774): text tokens made of the image's in 9 blocks, 10 epochs of batch 4 (5 across data sets).",
        NOT_RUN,
        TABLE_8.format("47.76", "24.23"),
    ),
}
