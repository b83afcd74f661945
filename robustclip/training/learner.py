"""One learner: the model that trains and its steps; plain torch, so that a test or a notebook can drive it.

It conducts: each file beside it does one thing of a step. The attack is inner_attack.py's, the prompts are rewriting.py's, a loss over
pairs is pairing.py's, the sum over workers gradients.py's, and the step itself optimiser.py's and averaging.py's.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.attacks.base import Example
from robustclip.attacks.pgd import PGD
from robustclip.base.precision import computing, tensor_cores
from robustclip.data.reading import to_images
from robustclip.defenses import Batch, Paired, Roles
from robustclip.models.class_texts import Templates
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.lowrank import bake
from robustclip.models.model import Model
from robustclip.training import inner_attack, strength
from robustclip.training.averaging import Average, copies, set_all
from robustclip.training.compatible import check_pair
from robustclip.training.compiling import Compiled
from robustclip.training.config import Config
from robustclip.training.gradients import Sums
from robustclip.training.installing import install
from robustclip.training.optimiser import Optimiser
from robustclip.training.pairing import WholeStep, World
from robustclip.training.precision import check_precision
from robustclip.training.proxy import share_right
from robustclip.training.recomputing import recompute
from robustclip.training.rewriting import Rewriting
from robustclip.views.crops import crops
from robustclip.views.shifts import shifts


class Learner:
    """The student and its teacher (the same classifier before training), the parameters that learn, and how they step.

    `world` is this worker's place among all, alone if not given. Every step averages `optim.batch` images. A defence with a `head_share`
    trains its head alone first: then, and only then, the head is what steps. One over pairs (`Paired`) waits for the whole step, and where
    the text tower learns, the class embeddings follow it. Raises UserError for a defence and a trainable that make no sense together.
    """

    def __init__(
        self,
        config: Config,
        model: Model,
        class_names: Sequence[str],
        templates: Templates,
        steps: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        world: World = World(),  # noqa: B008 (a frozen value)
    ):
        check_pair(config.defense, config.trainable)
        check_precision(config, device)
        self.config, self.steps, self.device, self.dtype = config, steps, device, dtype
        self.world = world
        model.clip.to(device, dtype)
        templates = config.templates or templates
        teacher = model.copy().classifier(class_names, templates).to(device, dtype).requires_grad_(False)
        self.model, self.parameters = install(config.trainable, model, config.seed, class_names)
        student = self.model.classifier(class_names, templates).to(device, dtype)
        if config.optim.recompute:
            recompute(student.clip, model.name)
        self.compiled = Compiled(student, config.attack.compile, device)
        head = config.defense.head(student, config.seed)
        self.roles = Roles(student, teacher, head if head is None else head.to(device, dtype))
        self.optimiser = Optimiser(config, self.parameters, head, steps)
        self.average = Average(self.parameters, config.optim.ema)
        self.rewriting = Rewriting(config.defense, student, teacher)
        self.pairs = WholeStep(config.defense, student, config.optim) if isinstance(config.defense, Paired) else None
        self.step = 0
        self.parts: dict[str, Any] = {}  # of the loss, summed over the micro-batches since the last step
        self.ids: list[str] = []  # of the images since the last step
        self.sums: Sums | None = None  # over all workers, once they are begun
        visual = {id(p) for p in student.clip.visual.parameters()}  # type: ignore[union-attr]
        towers = {id(p) for p in student.clip.parameters()}
        self.trains_tokens = student.prompt is not None and bool(student.prompt.text_layers())
        self.trains_texts = self.trains_tokens or any(id(p) in towers - visual for p in self.parameters)

    @property
    def student(self) -> ZeroShotClassifier:
        """The classifier that learns."""
        return self.roles.student

    @property
    def teacher(self) -> ZeroShotClassifier:
        """The same classifier before training."""
        return self.roles.teacher

    @property
    def head_steps(self) -> int:
        """How many steps, the first ones, train the head alone."""
        return self.optimiser.head_steps

    @property
    def in_head_stage(self) -> bool:
        """Whether the head learns, on clean images, and nothing else does."""
        return self.step < self.head_steps

    @property
    def rewritten(self) -> tuple[str, ...]:
        """The student's prompts after the defence's last text attack."""
        return self.rewriting.texts

    def accumulate(self, pixels: np.ndarray | Tensor, labels: Tensor, ids: list[str]) -> None:
        """Attack a micro-batch, 8-bit pixels [B,H,W,3] and labels [B], and add its gradient; ids key the attack's start and the crops."""
        images = self._augmented(to_images(pixels, self.device, self.dtype), ids)
        self.rewriting.rewrite(labels, self.step, first=not self.ids)
        batch = Batch(images, labels.to(self.device), ids, self.config.seed, self.step, self.rewritten)
        self.model.before_step(self.config.seed, self.step)
        if self.roles.head is not None:
            self.roles.head.requires_grad_(self.in_head_stage)
        self.ids += ids
        if self.pairs is not None:
            self.pairs.add(batch, self.attacked)
            return
        share = len(images) / self.config.optim.batch
        last = len(self.ids) * self.world.workers == self.config.optim.batch
        with tensor_cores(self.config.optim.precision == "tf32"):
            parts = self._head_loss(batch) if self.in_head_stage else self._loss(batch)
            with self._begun_sums().sending() if last else nullcontext():
                (sum(parts.values()) * share).backward()  # type: ignore[union-attr]
        for name, part in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + part.detach() * share

    def _begun_sums(self) -> Sums:
        self.sums = self.sums or Sums(self.optimiser.learning(self.step), self.world)
        return self.sums

    def _augmented(self, images: Tensor, ids: list[str]) -> Tensor:
        """Return the images as the data's augmentation shows them at this step."""
        if self.config.data.augment == "none":
            return images
        keys = [(self.config.seed, "augment", self.step, id_) for id_ in ids]
        return shifts(images, keys) if self.config.data.augment == "shift and flip" else crops(images, keys, 1)[:, 0]

    def attacked(self, batch: Batch, seen: Callable[[Tensor], None] = lambda images: None) -> Example:
        """Return the batch after the training attack of this step: PGD on the defence's objective; `seen` is shown its iterates."""
        with self.compiled.in_place():
            return inner_attack.attacked(self.config, self.roles, batch, self.step, seen)

    def _loss(self, batch: Batch) -> dict[str, Tensor]:
        adversarial = self.attacked(batch)
        with computing(self.config.optim.precision, batch.images.device):
            if self.trains_tokens:  # the loss reaches the tokens in the texts; attacks meet what the texts say as a constant
                self.student.class_embeddings = self.student.class_features()
            parts = self.config.defense.loss(self.roles, batch, adversarial)
            self.student.class_embeddings = self.student.class_embeddings.detach()
            return parts

    def _head_loss(self, batch: Batch) -> dict[str, Tensor]:
        assert self.roles.head is not None
        with torch.no_grad():
            features = self.student.features(batch.images)
        return {"head": F.cross_entropy(self.roles.head(features), batch.labels)}

    def update(self) -> dict[str, float]:
        """Take one optimiser step with the accumulated gradients, summed over workers; return the loss, its parts and the learning rate.

        Raises NotFinite with the step and the images of this worker in it.
        """
        if self.pairs is not None:
            self.parts = self.pairs.backward(self.rewritten, self.world)
        losses = self._begun_sums().finish(self.parts, self.step, self.ids)
        lr = self.optimiser.take(self.step)
        if not self.in_head_stage:
            self._hold_scale()
            self.average.update()
            if self.config.defense.scores_classes:
                self._follow()
        self.step, self.parts, self.ids, self.sums = self.step + 1, {}, [], None
        return {"loss": sum(losses.values()), **{f"loss/{name}": value for name, value in losses.items()}, "lr": lr}

    def _hold_scale(self) -> None:
        """Keep CLIP's own bound on logit_scale where the trainable asks for it."""
        if getattr(self.config.trainable, "logit_scale", None) == "clamped":
            self.student.clip.logit_scale.data.clamp_(max=math.log(100))  # type: ignore[operator]

    def _follow(self) -> None:
        """Let the class embeddings follow the text tower."""
        if self.trains_texts:
            self.student.class_embeddings = self.student.embed_prompts()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the running average of the weights in their place, where there is one, and the weights back afterwards."""
        if not self.average.values:
            self._follow()
            yield
            return
        try:
            with self.average.in_place():
                self._follow()
                yield
        finally:
            self._follow()

    def validate(self, images: Tensor, labels: Tensor, ids: list[str]) -> dict[str, float]:
        """Return val/clean and val/robust in [0,1]: accuracy on held-out images [N,3,H,W] and under the validation's PGD."""
        self.model.before_step(self.config.seed, None)
        with self.averaged():
            clean, robust = share_right(self.config, self.student, images.to(self.device), labels, ids, PGD(self.config.validation.steps))
        return {"val/clean": clean, "val/robust": robust}

    def strength(self, images: Tensor, labels: Tensor, ids: Sequence[str]) -> dict[str, float]:
        """Return how the training attack compares with itself in fp32 on held-out images [N,3,H,W]; nothing where it is in fp32."""
        if not strength.differs(self.config.attack):
            return {}
        size, seed = self.config.optim.micro_batch, self.config.seed
        parts = torch.arange(len(images)).split(size)
        named = ([ids[i] for i in part.tolist()] for part in parts)
        given = zip(parts, named, strict=True)
        batches = (Batch(images[p].to(self.device), labels[p].to(self.device), n, seed, self.step, self.rewritten) for p, n in given)
        return strength.measured(self.config, self.roles, batches, self.attacked)

    def finish(self) -> None:
        """Make the model one to save: averaged weights if there are any, fp32, at rest, its low-rank and partial changes baked in."""
        self.average.put()
        self.model.before_step(self.config.seed, None)
        bake(self.model.clip)
        self.model.clip.float()
        self._follow()

    def state(self) -> dict[str, Any]:
        """Return a copy of all that `restore` needs to go on bit for bit; the attack's randomness is keyed by step and id: no state."""
        kept = {"average": copies(self.average.values), "rewritten": list(self.rewritten)}
        return {"step": self.step, **self.optimiser.state(), **kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self.optimiser.restore(state)
        set_all(self.average.values, state["average"])
        self.step, self.rewriting.texts = state["step"], tuple(state.get("rewritten", ()))
        self._follow()
