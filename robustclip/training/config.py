"""A run is a value: one tree of frozen dataclasses, of which command line, sweep, MLflow and checkpoint are views."""

import re
import sys
from dataclasses import dataclass, field
from typing import Literal

from robustclip.base.errors import UserError
from robustclip.base.precision import Precision
from robustclip.base.ranges import AMOUNT, COUNT, DECAY, DRAWN, NATURAL, PIXELS, SEED, check, check_fields
from robustclip.base.threat import ThreatModel
from robustclip.defenses import Defense, TeCoA
from robustclip.models.class_texts import Descriptions
from robustclip.training.compatible import check_described
from robustclip.training.trainables import Trainable, VisualTower


@dataclass(frozen=True)
class Data:
    """Which labelled images train: a set of `out/data` or of the embedded world, all of it, `n` in all or `per_class`.

    `held_out` of its images never train: `val/` is measured on them. Images larger than the model's input are resized to `resize`
    (shorter side; default the model's size) and cropped. `augment` "crop and flip" shows another random resized crop of an image, flipped
    or not, each time it trains; "shift and flip" moves it by up to 4 pixels instead, which suits small ones. `rendered` images are made
    when the set is one of the embedded world.
    """

    name: str = "labelled"
    n: int | None = None
    per_class: int | None = None
    held_out: int = 256
    resize: int | None = None
    augment: Literal["none", "crop and flip", "shift and flip"] = "none"
    rendered: int = 8192
    render_seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "data.", n=COUNT, per_class=COUNT, held_out=COUNT, resize=PIXELS, rendered=DRAWN, render_seed=SEED)


@dataclass(frozen=True)
class InnerAttack:
    """PGD during training: `steps` of `alpha` times eps from a uniform start in the ball; its last iterate trains.

    `precision` is that of its forwards and gradients, whatever the update's is: "fp32", "tf32" (an NVIDIA GPU's tensor cores), or "bf16",
    which is autocast and rounds away the gradients of confident images. Class embeddings, validation and scoring are true fp32 with any.
    `compile` runs the attacked tower as torch.compile makes it, by its mode "default" or "reduce-overhead" (CUDA graphs, on a GPU alone):
    faster once it is compiled, equal but for rounding, and so part of a run's key.
    """

    steps: int = 2
    alpha: float = 1.0
    precision: Precision = "fp32"
    compile: Literal["off", "default", "reduce-overhead"] = field(default="off", metadata={"later": True})

    def __post_init__(self) -> None:
        check_fields(self, "attack.", steps=NATURAL, alpha=AMOUNT)


@dataclass(frozen=True)
class Optim:
    """The optimiser: learning rate warmed up over `warmup` steps, then cosine to 0 or constant; a step averages `batch` images.

    The micro-batch, not the number of workers, fixes what is computed together: results do not depend on how many workers share a step.
    `ema` is the decay of a running average of the weights, which is then what is validated and saved; 0 is none. `precision` bf16 runs the
    update's forwards under autocast, tf32 both its passes on tensor cores; weights and sums stay fp32. "adam" adds its weight decay to the
    gradient, "adamw" to the step; `eps` is what both add to the root of the second moment. With `recompute` blocks are computed again in
    the backward pass, which takes more time, less memory, and changes nothing. A `fused` step is one kernel for all weights: less time and
    memory on a GPU, and other last bits.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = field(default=1e-8, metadata={"later": True})
    warmup: int = 0
    epochs: int = 4
    batch: int = 128
    micro_batch: int = 64
    ema: float = 0.0
    precision: Precision = "fp32"
    schedule: Literal["cosine", "constant"] = "cosine"
    recompute: bool = field(default=False, metadata={"later": True})
    fused: bool = field(default=False, metadata={"later": True})

    def __post_init__(self) -> None:
        check_fields(self, "optim.", lr=AMOUNT, weight_decay=AMOUNT, momentum=AMOUNT, eps=AMOUNT, ema=DECAY)
        check_fields(self, "optim.", warmup=NATURAL, epochs=COUNT, batch=COUNT, micro_batch=COUNT)
        check({f"betas[{i}]": beta for i, beta in enumerate(self.betas)}, {"betas[0]": DECAY, "betas[1]": DECAY}, "optim.")


@dataclass(frozen=True)
class Validation:
    """The proxy for choosing between trials: clean accuracy and PGD at one eps (1/255), the same for every trial, on the held-out slice."""

    images: int = 256
    eps: float = 4.0
    steps: int = 10

    def __post_init__(self) -> None:
        check_fields(self, "validation.", images=COUNT, eps=AMOUNT, steps=NATURAL)


@dataclass(frozen=True)
class Config:
    """One fine-tuning run."""

    model: str = "tiny-vit8"
    data: Data = Data()
    defense: Defense = field(default_factory=TeCoA)
    trainable: Trainable = field(default_factory=VisualTower)
    threat: ThreatModel = field(default_factory=ThreatModel)
    attack: InnerAttack = InnerAttack()
    optim: Optim = Optim()
    validation: Validation = Validation()
    # What classes are called in training, by attack and loss alike: prompts, or descriptions of each; None: the data set's own prompts.
    templates: tuple[str, ...] | Descriptions | None = None
    checkpoint_every: int = 50
    seed: int = 0

    def tags(self) -> dict[str, str]:
        """Return what runs are grouped by: the method, what it trains, and the paper that the method's file names."""
        kind = type(self.defense)
        papers = re.findall(r"arXiv:\d{4}\.\d{5}", f"{kind.__doc__} {sys.modules[kind.__module__].__doc__}")
        return {"method": kind.__name__, "trainable": type(self.trainable).__name__} | ({"paper": papers[0]} if papers else {})

    def __post_init__(self) -> None:
        check_fields(self, checkpoint_every=COUNT, seed=SEED)
        if isinstance(self.templates, Descriptions):
            check_described(self.defense, self.trainable)
        if self.defense.whole_batch and self.optim.micro_batch < 2:
            raise UserError(
                f"optim.micro_batch is {self.optim.micro_batch}: {type(self.defense).__name__} works on the images of a micro-batch "
                "together, give it 2 or more"
            )
