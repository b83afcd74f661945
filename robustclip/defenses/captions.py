"""CLIP's own training, nothing attacked: Radford et al., "Learning Transferable Visual Models", arXiv:2103.00020, section 2.3."""

from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from robustclip.attacks.base import Example
from robustclip.base.draws import uniform
from robustclip.defenses.base import Batch, Defense, Roles
from robustclip.models.classifier import ZeroShotClassifier


@dataclass(frozen=True)
class Captioned(Defense):
    """CLIP's loss on the images of a micro-batch and a caption of each (arXiv:2103.00020, Fig. 3), by open_clip's ClipLoss.

    A caption is one of its class's texts, drawn anew at every step by the image's id. Two images of one class are no positives, as in
    CLIP: since captions are drawn regardless of the image, that only adds noise. Ours: what an image is told apart from are the captions of
    its micro-batch, whatever the number of workers, so the size of a micro-batch is part of the method.
    """

    reads = "captions"
    whole_batch = True
    scores_classes = False

    def objective(self, roles: Roles, batch: Batch) -> None:
        """Return None: nothing is attacked."""

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return (CE(s I T^t, own) + CE(s T I^t, own)) / 2."""
        from open_clip.loss import ClipLoss

        student = roles.student
        images, texts = student.embed_images(batch.images), student.embed_texts(captions(student, batch))
        return {"captions": ClipLoss()(images, texts, student.clip.logit_scale.exp())}  # type: ignore[operator]


def captions(student: ZeroShotClassifier, batch: Batch) -> list[str]:
    """Return a text of each image's class, by seed, step and the image's id."""
    firsts = [0, *accumulate(student.counts)]
    drawn = uniform([(batch.seed, "caption", batch.step, id_) for id_ in batch.ids], 1)[:, 0].tolist()
    return [student.texts[firsts[label] + int(u * student.counts[label])] for label, u in zip(batch.labels.tolist(), drawn, strict=True)]
