"""One training step of TeCoA against the structure of its published code, against plain PyTorch, and against its matrix products alone.

    python benchmarks/step.py [--model MODEL] [--images 8] [--pairs 5]

A ViT-B/32 with random weights at 224 px, PGD of 2 steps, then the update. "Published" runs the text tower with its graph at every step of
the attack and of the training, and lets every loss go back into all parameters, as the code of arXiv:2212.07016 does. "Plain" is what a
careful hand writes: class embeddings once, gradients of the attack for the images alone. All three take the same step to the same weights
(tests/test_results.py). The products alone are every matrix product, convolution and attention of our step, at its shapes, done again.

With 25, 50 and 100 classes the published step's seconds are fitted by a line; 1,000 classes, and a batch of 256, are extrapolated by it:
the images' part, its value at no class, is taken to grow with the images. On a CPU all sides keep the memory that they free: glibc gives
back every tensor above 32 MiB and maps it anew, and the published step's texts grow past that between 50 and 100 classes.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from batched_tuning import names
from row import PAIRS, Pairs, Row, keep_memory, not_measured, paired, seconds, show
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from robustclip import names as models
from robustclip.base.precision import computing
from robustclip.training.config import Config, Precision
from robustclip.training.learner import Learner
from robustclip.training.recipe import TECOA

UNTRAINED = "open_clip:ViT-B-32-quickgelu/random[seed=0]"
EPS = TECOA.threat.image.radius  # type: ignore[union-attr]
MANY, PUBLISHED_BATCH = 1000, 256  # classes of ImageNet, images of a step of the paper
SQUARE = 8192  # side of the matrices by whose product a GPU's bf16 rate is measured
Step = Callable[[], Any]
Start = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """Some images under some classes, on a device, its forwards in a precision."""

    images: int = 8
    classes: int = 100
    model: str = UNTRAINED
    precision: Precision = "fp32"
    device: str = "cpu"
    attack_steps: int = TECOA.attack.steps

    @property
    def config(self) -> Config:
        """TeCoA's recipe with this batch and a constant rate; on a GPU with the switches that are for one."""
        optim = replace(TECOA.optim, batch=self.images, micro_batch=self.images, warmup=0, schedule="constant", precision=self.precision)
        attack = replace(TECOA.attack, steps=self.attack_steps, precision=self.precision)
        if self.device == "cuda":
            optim, attack = replace(optim, fused=True), replace(attack, compile="default")
        return replace(TECOA, optim=optim, attack=attack)

    def pixels(self, size: int) -> Tensor:
        """Return the images, 8-bit [B,H,W,3]."""
        return torch.randint(256, (self.images, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    @property
    def labels(self) -> Tensor:
        """Their classes [B]."""
        return torch.arange(self.images) % self.classes


def learner_of(case: Case) -> Learner:
    """Return our learner."""
    return Learner(case.config, models.load(case.model), names(case.classes), case.config.templates or (), 1000, case.device)


def ours(case: Case, learner: Learner | None = None) -> Step:
    """Return our step."""
    learner = learner or learner_of(case)
    pixels, ids = case.pixels(learner.student.preprocess.size), [str(i) for i in range(case.images)]

    def step() -> None:
        learner.accumulate(pixels, case.labels, ids)
        learner.update()

    return step


def uniform(images: Tensor) -> Tensor:
    """Return a start in the ball."""
    return (2 * torch.rand_like(images) - 1) * EPS


class ByHand:
    """What both steps by hand share: the model, its optimiser, images and labels, and the logits of images against text features."""

    def __init__(self, case: Case):
        model = models.load(case.model)
        self.case, self.clip, preprocess = case, model.clip.to(case.device), model.preprocess
        config = case.config
        texts = [template.format(name) for name in names(case.classes) for template in config.templates or ()]
        self.tokens = model.tokenizer(texts).to(case.device)
        self.mean, self.std = (torch.tensor(each, device=case.device).view(3, 1, 1) for each in (preprocess.mean, preprocess.std))
        self.images = case.pixels(preprocess.size).to(case.device).permute(0, 3, 1, 2).float() / 255
        self.labels, self.attack = case.labels.to(case.device), config.attack
        parameters = self.clip.visual.parameters()
        self.optimizer = torch.optim.SGD(parameters, lr=config.optim.lr, momentum=config.optim.momentum)

    def texts(self) -> Tensor:
        return F.normalize(self.clip.encode_text(self.tokens), dim=-1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        features = F.normalize(self.clip.visual((images - self.mean) / self.std), dim=-1)
        return self.clip.logit_scale.exp() * features @ texts.T

    def moved(self, delta: Tensor, gradient: Tensor) -> Tensor:
        """Return the perturbation after a step of the attack, in the ball and the image."""
        return self.inside((delta.detach() + self.attack.alpha * EPS * gradient.sign()).clamp(-EPS, EPS))

    def inside(self, delta: Tensor) -> Tensor:
        return (self.images + delta).clamp(0, 1) - self.images


def plain(case: Case, start: Start = uniform) -> Step:
    """Return the step as a careful hand writes it."""
    hand = ByHand(case)
    hand.clip.requires_grad_(False)
    hand.clip.visual.requires_grad_(True)
    with torch.no_grad():
        texts = hand.texts()

    def step() -> None:
        with computing(case.precision, hand.images.device):
            delta = hand.inside(start(hand.images))
            for _ in range(hand.attack.steps):
                delta.requires_grad_(True)
                loss = F.cross_entropy(hand.logits(hand.images + delta, texts), hand.labels, reduction="sum")
                delta = hand.moved(delta, torch.autograd.grad(loss, delta)[0])
            hand.optimizer.zero_grad()
            loss = F.cross_entropy(hand.logits(hand.images + delta, texts), hand.labels)
        loss.backward()
        hand.optimizer.step()

    return step


def published(case: Case, start: Start = uniform) -> Step:
    """Return the step with the published code's structure; its gradients of the attack are thrown away, so that it is the same step."""
    hand = ByHand(case)
    hand.clip.requires_grad_(True)

    def step() -> None:
        with computing(case.precision, hand.images.device):
            delta = hand.inside(start(hand.images))
            for _ in range(hand.attack.steps):
                delta = delta.detach().requires_grad_(True)
                F.cross_entropy(hand.logits(hand.images + delta, hand.texts()), hand.labels).backward()
                assert delta.grad is not None
                delta = hand.moved(delta, delta.grad)
            hand.clip.zero_grad()
            loss = F.cross_entropy(hand.logits(hand.images + delta.requires_grad_(True), hand.texts()), hand.labels)
        loss.backward()
        hand.optimizer.step()

    return step


class Products(TorchDispatchMode):
    """Keeps every matrix product, convolution and attention that is computed while it is on, to do them again."""

    WORDS = ("mm", "convolution", "scaled_dot_product")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Any] = Counter()
        self.work: dict[Any, Step] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in func.__name__ for word in self.WORDS):
            shapes = tuple((each.shape, each.stride(), each.dtype) if isinstance(each, Tensor) else str(each) for each in args)
            self.counts[func, shapes] += 1
            self.work.setdefault((func, shapes), partial(func, *args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))

    def again(self) -> None:
        """Do them all again."""
        with torch.no_grad():
            for which, work in self.work.items():
                for _ in range(self.counts[which]):
                    work()


def products_of(step: Step) -> Products:
    """Return the products of a step."""
    with Products() as found:
        step()
    return found


def fitted(few: dict[int, float], classes: int, took: Pairs, images: int, batch: int) -> Pairs:
    """Return both sides of `took`, measured with `classes` classes and `images` images, at MANY classes and a batch of `batch`.

    Raises ValueError where a line of a pair does not rise from above zero: other work on the machine has moved it.
    """
    lines = [np.polyfit([*few, classes], [*few.values(), each], 1) for each in took.baseline]
    if min(min(each) for each in lines) <= 0:
        raise ValueError("a fitted line falls or begins below zero: measure it on a machine that does nothing else")
    grown = batch / images
    return Pairs(tuple(float(grown * fixed + MANY * each) for each, fixed in lines), tuple(grown * each for each in took.ours))


def extrapolated(few: dict[int, float], classes: int, took: Pairs, images: int, batch: int) -> Row:
    """Return the row of MANY classes and a batch of `batch`, or the reason why there is none."""
    said = ", ".join(map(str, [*few, classes]))
    claim = f"the same with {batch} images and {MANY} classes, extrapolated from {images} and a line through {said}"
    try:
        return fitted(few, classes, took, images, batch).row(claim, "published structure", "ours")
    except ValueError as error:
        return not_measured(claim, "published structure", "ours", None, str(error))


def best_of_two(taken: Step) -> float:
    """Return the seconds of the faster of two: the first warms up."""
    return min(seconds(taken), seconds(taken))


def rows(model: str = UNTRAINED, images: int = 8, pairs: int = PAIRS, classes: tuple[int, int, int] = (25, 50, 100)) -> list[Row]:
    """Return the rows of a step on this CPU."""
    keep_memory()
    *few, many = (Case(images, k, model) for k in classes)
    took = {case.classes: best_of_two(published(case)) for case in few}
    step, by_hand = ours(many), published(many)
    step()
    against = paired(partial(seconds, by_hand), partial(seconds, step), pairs)
    del by_hand
    by_hand = plain(many)
    by_hand()
    found = [against.row(f"a training step, {images} images, {many.classes} classes", "published structure", "ours")]
    found += [extrapolated(took, many.classes, against, images, batch) for batch in (images, PUBLISHED_BATCH)]
    both = paired(partial(seconds, by_hand), partial(seconds, step), pairs)
    why = "starts that are keyed by image, and a look for gradients that are not finite, which plain code has not"
    found.append(both.row(f"a training step, {images} images", "plain PyTorch", "ours", 1.0, why=why))
    products = products_of(step)
    alone = paired(partial(seconds, products.again), partial(seconds, step), pairs)
    return [*found, alone.row("its share of the matrix products' ceiling at the same shapes", "the products alone", "ours")]


ON_GPU = (
    (
        "training with a bf16 attack: share of the measured bf16 rate",
        f"its products at the rate of one of {SQUARE} x {SQUARE} matrices",
        0.5,
    ),
    (f"a training step, {PUBLISHED_BATCH} images, {MANY} classes, bf16", "published structure", 10.0),
    (f"a training step, {PUBLISHED_BATCH} images, bf16", "plain PyTorch", 1.0),
)


def rows_on_gpu(pairs: int = PAIRS) -> list[Row]:
    """Return the rows of a step on a GPU."""
    if not torch.cuda.is_available():
        why = "no GPU here; there: python benchmarks/results.py --only gpu"
        return [not_measured(claim, baseline, "ours", aim, why) for claim, baseline, aim in ON_GPU]
    case = Case(PUBLISHED_BATCH, MANY, precision="bf16", device="cuda")
    step, a = ours(case), torch.rand(SQUARE, SQUARE, device="cuda", dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counted:
        step()
    products = counted.get_total_flops() / (2 * SQUARE**3)

    def at_the_rate() -> float:
        return products / 8 * seconds(lambda: [a @ a for _ in range(8)])

    sides = (at_the_rate, partial(seconds, published(case)), partial(seconds, plain(case)))
    found = []
    for (claim, baseline, aim), side in zip(ON_GPU, sides, strict=True):
        side()
        found.append(paired(side, partial(seconds, step), pairs).row(claim, baseline, "ours", aim))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=UNTRAINED)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    args = parser.parse_args()
    show("step", rows(args.model, args.images, args.pairs))


if __name__ == "__main__":
    main()
