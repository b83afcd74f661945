"""What a visual tower's tokens are like: mean and variance of every block's input, summed in pieces, kept as a file (TAPT stage 1)."""

import json
from dataclasses import dataclass, field
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.insertion import require_vit
from robustclip.models.model import tensors_sha256

FORMAT = 1
ABOUT = "robustclip token statistics"  # the one entry of the file's metadata: safetensors keeps several in no fixed order
REMEDY = "make one with robustclip moments"

Crop = Literal["train", "centre"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean [L,T,D] and sum of squared deviations from it [L,T,D], in fp64, of the inputs of L blocks of T tokens of width D."""

    count: int
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Moments":
        """Return the moments over the B images of inputs [L,B,T,D], one block at a time: in fp64 they take twice the room."""
        blocks = [torch.var_mean(block.double(), 0, correction=0) for block in x]
        variance, mean = (torch.stack(parts) for parts in zip(*blocks))
        return cls(x.shape[1], mean, variance * x.shape[1])

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both together (Chan, Golub, LeVeque 1979): the same for any grouping, but for fp64's rounding."""
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        return Moments(count, mean, self.m2 + other.m2 + step.square() * (self.count * other.count / count))

    @property
    def variance(self) -> Tensor:
        """The unbiased variance [L,T,D]; raises UserError for a single image."""
        if self.count < 2:
            raise UserError(f"a variance needs at least 2 images, these statistics are of {self.count}: take more")
        return self.m2 / (self.count - 1)

    def to_bytes(self) -> bytes:
        """Return the moments as bytes that travel between processes."""
        parts = {"count": torch.tensor(self.count), "mean": self.mean, "m2": self.m2}
        return save_tensors({name: part.cpu().contiguous() for name, part in parts.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Moments":
        """Return what to_bytes wrote, on the CPU."""
        parts = load_tensors(data)
        return cls(int(parts["count"]), parts["mean"], parts["m2"])


def block_inputs(classifier: ZeroShotClassifier, images: Tensor) -> Tensor:
    """Return the input [L,B,T,D] of every visual block, prompt tokens last, for images [B,3,H,W] in [0,1], without gradient.

    Raises UserError for a classifier of several models and for a tower that is no vision transformer.
    """
    if not isinstance(classifier, ZeroShotClassifier):
        raise UserError("statistics of tokens are those of one visual tower: an ensemble has several, take one of its models")
    require_vit(classifier.clip.visual, "statistics of tokens need")  # type: ignore[arg-type]
    inputs: list[Tensor] = []
    with torch.no_grad():
        classifier.features(images, look=lambda layer, x: inputs.append(x))
    return torch.stack(inputs)


def backbone_sha256(classifier: ZeroShotClassifier) -> str:
    """Return the hash of the CLIP model under the prompt."""
    return tensors_sha256(classifier.clip.state_dict())


def prompt_sha256(classifier: ZeroShotClassifier) -> str:
    """Return the hash of the prompt, that of no tensors where there is none."""
    return tensors_sha256({} if classifier.prompt is None else classifier.prompt.state_dict())


@dataclass(frozen=True, eq=False)
class Targets:
    """Mean and unbiased variance [L,T,D] (fp32) of the block inputs of `count` clean images, and all they depend on.

    `data` and `split` name the images, `crop` is how they were cut. `file` is where the statistics were read from; it is not written.
    """

    mean: Tensor
    variance: Tensor
    count: int
    data: str
    split: str
    crop: Crop
    prompt_sha256: str
    backbone_sha256: str
    file: str = field(default="", compare=False)

    @classmethod
    def of(cls, moments: Moments, classifier: ZeroShotClassifier, data: str, split: str, crop: Crop) -> "Targets":
        """Return the targets that moments of a classifier's tokens make; raises UserError where they are not finite or of one image."""
        mean, variance = moments.mean.float(), moments.variance.float()
        if not (mean.isfinite().all() and variance.isfinite().all()):
            raise UserError(f"the tokens of {data} are not finite in this model: it is damaged, or was trained until it overflowed")
        return cls(mean, variance, moments.count, data, split, crop, prompt_sha256(classifier), backbone_sha256(classifier))

    def write(self, path: str) -> None:
        """Write one safetensors file in one step; the same targets are the same bytes."""
        facts = {name: getattr(self, name) for name in ("count", "data", "split", "crop", "prompt_sha256", "backbone_sha256")}
        about = {ABOUT: json.dumps({"format": FORMAT, **facts}, sort_keys=True)}
        tensors = {"mean": self.mean.cpu().contiguous(), "variance": self.variance.cpu().contiguous()}
        storage.write_bytes(storage.resolve(path), save_tensors(tensors, about))

    @classmethod
    def read(cls, path: str) -> "Targets":
        """Return the targets of a file; raises UserError for a missing, foreign, damaged or newer one."""
        path = storage.resolve(path)
        try:
            data = storage.read_bytes(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error}); {REMEDY}") from error
        try:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            facts = json.loads(header["__metadata__"][ABOUT])
            version = facts.pop("format")
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path}: not a file of token statistics; {REMEDY}") from error
        if version > FORMAT:
            raise UserError(f"{path}: token statistics of format {version}, this robustclip reads up to {FORMAT}: upgrade robustclip")
        try:
            tensors = load_tensors(data)
            return cls(tensors["mean"], tensors["variance"], **facts, file=path)
        except (SafetensorError, LookupError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error}); {REMEDY}") from error

    def check(self, classifier: ZeroShotClassifier, other_prompt: bool = False) -> None:
        """Raise UserError unless the statistics were made with the classifier's CLIP and prompt and have its blocks, tokens and width.

        With `other_prompt` the prompt may be another of as many tokens: TAPT's "clean" statistics are those of another prompt.
        """
        file = self.file or "token statistics"
        again = "give those of this model, or make them: robustclip moments MODEL --to FILE"
        size = classifier.preprocess.size
        image = torch.zeros(1, 3, size, size).to(next(classifier.clip.parameters()))
        found = block_inputs(classifier, image)[:, 0].shape
        if found != self.mean.shape:
            (blocks, tokens, width), (own_blocks, own_tokens, own_width) = self.mean.shape, found
            raise UserError(
                f"{file}: of {blocks} blocks with {tokens} tokens of width {width}, but this model has {own_blocks} blocks with "
                f"{own_tokens} tokens of width {own_width}, its prompt's included; {again}"
            )
        for what, stored, own in (
            ("CLIP weights", self.backbone_sha256, backbone_sha256(classifier)),
            ("a prompt", self.prompt_sha256, self.prompt_sha256 if other_prompt else prompt_sha256(classifier)),
        ):
            if stored != own:
                raise UserError(f"{file}: made with {what} of sha256 {stored[:12]}..., but this model's is {own[:12]}...; {again}")
