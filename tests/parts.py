"""What tests of training share: every defence, every trainable in a size that suits the tiny models, which pairs work, and a step."""

import torch
from torch import nn

from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import RandomWords
from robustclip.base.threat import Ball, ThreatModel
from robustclip.defenses import DEFENSES, FARE, PMGAFT, Batch, LinearAT, Mix, MMCoA, Paired, Roles, TeCoA
from robustclip.models.dress import FramedTokens, InputFilter, JointTokens, LinearHead, PixelPrompt, TokenPrompt
from robustclip.training.config import Config, InnerAttack, Optim, Validation
from robustclip.training.learner import Learner
from robustclip.training.trainables import FirstBlocks, LastBlocks, LoRA, NormsAndBiases, SameSize, Towers, VisualTower

NAMES, TEMPLATES, STEPS = ["red", "green", "blue", "grey"], ["a photo of a {}.", "a {} thing."], 15
SMALL = (
    VisualTower(),
    Towers(),
    LastBlocks(1),
    FirstBlocks(1),
    NormsAndBiases(),
    SameSize(4000),
    LoRA(2, 4.0),
    LinearHead(),
    PixelPrompt("pad", 4),
    TokenPrompt(4),
    FramedTokens(4, 2),
    JointTokens("text to visual", 2, 1),
    InputFilter(3),
)
RATES = dict(zip((type(part) for part in SMALL), (3e-3, 3e-3, 3e-3, 3e-3, 1e-2, 2e-2, 1e-2, 0.1, 0.6, 0.5, 0.2, 1e-2, 6e-2)))
GENTLE = {FARE: 0.1, Mix: 0.3, PMGAFT: 0.5}  # a loss that starts near 0 is easily overshot
TOWER, ATTACK = SMALL[0], InnerAttack(2, 0.75)
ON_FEATURES = ("LinearAT", "CoAdv", "ImgCoAdv", "FARE", "Mix")  # the defences that work on the tower's features


def made(kind):
    """Return a defence whose head, if it trains one first, gets somewhere in two steps, and whose text attack is quick."""
    if kind is MMCoA:
        return MMCoA(text=TextAttack(RandomWords()), refresh=4, targets="class_lse")
    return LinearAT(head_lr=0.1) if kind is LinearAT else kind()


def refusal(defense, trainable, kind="vit"):
    """Return the words that refuse a defence with a trainable on a kind of tower, None where they work together."""
    if isinstance(trainable, LinearHead) and type(defense).__name__ in ON_FEATURES:
        return f"{type(defense).__name__} works on the features of the visual tower, which LinearHead leaves as they are"
    if isinstance(trainable, LinearHead) and isinstance(defense, Paired):
        return f"{type(defense).__name__} compares images with prompts, which LinearHead does not read"
    if isinstance(trainable, Towers) and not isinstance(defense, Paired):
        return f"{type(defense).__name__} trains against fixed texts, from which the text tower of Towers would learn nothing"
    if isinstance(trainable, JointTokens) and isinstance(defense, Paired):
        return f"{type(defense).__name__} trains the towers, not tokens in the texts"
    if kind == "resnet" and isinstance(trainable, LoRA | TokenPrompt | FramedTokens | JointTokens):
        needs = {LoRA: "LoRA needs", JointTokens: "prompts of both towers need"}
        return f"{needs.get(type(trainable), 'prompt tokens need')} a vision transformer"
    return None


def pairs():
    """Return a spread of the pairs that work: every defence on the whole tower, every trainable under TeCoA and under another defence."""
    tecoa, others = TeCoA(), [made(kind) for kind in DEFENSES if kind is not TeCoA]
    chosen = [(defense, TOWER) for defense in (tecoa, *others)] + [(tecoa, part) for part in SMALL[1:]]
    chosen += [(others[(i + 6) % len(others)], part) for i, part in enumerate(SMALL[1:])]
    return [pair for pair in chosen if refusal(*pair) is None]


def name(pair):
    return "-".join(type(part).__name__ for part in pair)


def config(defense, trainable=TOWER, eps=2.0, batch=32, micro_batch=None, attack=ATTACK, seed=0, **optim):
    """Return a run at a rate that suits its parts; keywords are the optimiser's."""
    settings = {"lr": RATES[type(trainable)] * GENTLE.get(type(defense), 1.0), "weight_decay": 1e-4} | optim
    return Config(
        defense=defense,
        trainable=trainable,
        threat=ThreatModel(Ball("Linf", eps)),
        attack=attack,
        optim=Optim(batch=batch, micro_batch=micro_batch or batch, **settings),
        validation=Validation(images=16, eps=4.0, steps=3),
        seed=seed,
    )


def learner_of(model, config, dtype=torch.float32, steps=STEPS, **options):
    return Learner(config, model, NAMES, TEMPLATES, steps, dtype=dtype, **options)


def pixels(x):
    """Return images [B,3,H,W] in [0,1] as 8-bit pixels [B,H,W,3]."""
    return (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def step(learner, batch, micro_batch=None):
    """Take one step on pixels, labels and ids, in micro-batches."""
    pixels, labels, ids = batch
    for part in torch.arange(len(ids)).split(micro_batch or len(ids)):
        learner.accumulate(pixels[part], labels[part], [ids[i] for i in part])
    return learner.update()


def learned(learner):
    return torch.cat([p.detach().flatten() for p in learner.parameters])


def roles_of(defense, model, names=NAMES):
    """Return the roles of a defence whose student has moved away from its teacher, the head as it starts."""
    teacher, g = model.copy().classifier(names, TEMPLATES), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.clip.visual.parameters():
            p += 0.02 * torch.randn(p.shape, generator=g)
    student = model.classifier(names, TEMPLATES)
    return Roles(student, teacher, defense.head(student, 0))


def part_of(batch, rows):
    """Return the batch of some rows."""
    return Batch(batch.images[rows], batch.labels[rows], [batch.ids[i] for i in rows], batch.seed, batch.step)


class Given(nn.Module):
    """A classifier whose image features are the images themselves: logits s x T^t."""

    def __init__(self, texts, scale=1.0):
        super().__init__()
        self.texts, self.scale = texts, scale
        self.class_embeddings = texts

    def features(self, x):
        return x

    def embed_images(self, x):
        return nn.functional.normalize(x, dim=-1)

    def forward(self, x):
        return self.scale * x @ self.texts.T
