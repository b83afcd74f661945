"""ImgCoAdv: contrastive adversarial training between two views of an image, without labels or text (after Jiang et al. 2020)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.attacks.base import Example, Objective, Scored
from robustclip.base.draws import uniform
from robustclip.defenses.base import Batch, Defense, Roles


@dataclass(frozen=True)
class ImgCoAdv(Defense):
    """Image against image, "(ImgCoAdv.)" in TeCoA's tables (arXiv:2212.07016, Eqs. 7-8 and Alg. 3).

    x_j is a second view of x_i; L = -log [exp(cos(z_i, z_j) / t) / sum_k exp(cos(z_i, z_k) / t)] over the views of the micro-batch; the
    attack moves x_i to raise it, training lowers it for (x_i + delta*, x_j). Neither views nor temperature are given: a view here is a
    crop of at least `crop` of the side, flipped or not, with up to `jitter` of brightness and contrast.
    """

    reads = "features"
    least_classes = 1
    whole_batch = True
    temperature: float = 0.1
    crop: float = 0.7
    jitter: float = 0.3

    def objective(self, roles: Roles, batch: Batch) -> Objective:
        """Return L of x_i + delta against the views as they are."""
        with torch.no_grad():
            views = roles.student.embed_images(self.view(batch))

        def objective(images: Tensor) -> Scored:
            return Scored(self.contrast(roles.student.embed_images(images), views))

        return objective

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return L of (x_i + delta*, x_j)."""
        anchors, views = roles.student.embed_images(adversarial.images), roles.student.embed_images(self.view(batch))
        return {"img_coadv": self.contrast(anchors, views).mean()}

    def contrast(self, anchors: Tensor, views: Tensor) -> Tensor:
        """Return L for each of the unit features [B,D], whose own view stands at the same place of [B,D]."""
        return F.cross_entropy(anchors @ views.T / self.temperature, torch.arange(len(views), device=views.device), reduction="none")

    def view(self, batch: Batch) -> Tensor:
        """Return the second views [B,3,H,W] in [0,1], each drawn from its own image's id."""
        draws = uniform([(batch.seed, "view", batch.step, id_) for id_ in batch.ids], 6).tolist()
        return torch.stack([self._view(image, draw) for image, draw in zip(batch.images, draws, strict=True)])

    def _view(self, image: Tensor, u: Sequence[float]) -> Tensor:
        height, width = image.shape[-2:]
        share = self.crop + (1 - self.crop) * u[0]
        h, w = max(1, round(share * height)), max(1, round(share * width))
        top, left = int(u[1] * (height - h + 1)), int(u[2] * (width - w + 1))
        view = F.interpolate(image[None, :, top : top + h, left : left + w], (height, width), mode="bilinear", antialias=False)[0]
        view = view.flip(-1) if u[3] < 0.5 else view
        brightness, contrast = (1 + self.jitter * (2 * u[i] - 1) for i in (4, 5))
        return ((view - view.mean()) * contrast + view.mean() * brightness).clamp(0, 1)
