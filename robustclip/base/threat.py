"""What the adversary may do: a ball around the image, a budget of edits on the text, or both."""

import logging
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from torch import Tensor

from robustclip.base.errors import UserError

log = logging.getLogger(__name__)

# Eps outside of which a slip of units is likelier than an intention. Linf: below 0.1 not even a fifth of what moves an 8-bit value, and any
# usual radius written for images in [0,1] is there; above 64 a right answer is no longer defined. L2, which adds up over all values of an
# image: usual radii for images in [0,1] are 0.25 to 3, which are 64 to 765 here; above, the length of 64 on every value of a 32 px image.
USUAL = {"Linf": (0.1, 64.0), "L2": (8.0, 64.0 * math.sqrt(3 * 32 * 32))}


@dataclass(frozen=True)
class Ball:
    """All images within `eps`/255 of the clean one in the `norm`, at the resolution the image is stored in, and inside [0,1].

    `eps` is written in 1/255, as papers do; `radius` is the only place where it is converted. Raises UserError for an eps that is negative
    or not finite.
    """

    norm: Literal["Linf", "L2"] = "Linf"
    eps: float = 2.0

    def __post_init__(self) -> None:
        if self.norm not in ("Linf", "L2"):
            raise UserError(f"threat.image.norm is {self.norm!r}: choose Linf or L2")
        if not 0 <= self.eps < math.inf:
            raise UserError(f"threat.image.eps is {self.eps}: eps is a radius in 1/255, finite and not negative")

    @property
    def doubt(self) -> str | None:
        """Why its eps is hardly meant in 1/255, as one line; None for one that may be, and for 0, which is the clean image."""
        low, high = USUAL[self.norm]
        if self.eps == 0 or low <= self.eps <= high:
            return None
        meant = (
            f"if {self.eps:g} is of images in [0,1], give {255 * self.eps:g}" if self.eps < low else "right answers are not defined there"
        )
        return f"eps is {self.eps:g}, that is {self.radius:.2g} of images in [0,1] in {self.norm}: eps is in 1/255; {meant}"

    def tell_doubt(self, where: str) -> None:
        """Warn on the log of an eps that is hardly meant; `where` says whose it is."""
        if self.doubt:
            log.warning("%s: %s", where, self.doubt)

    @property
    def radius(self) -> float:
        """The radius in pixel units of [0,1]."""
        return float(Fraction(self.eps) / 255)

    def __str__(self) -> str:
        return f"{self.norm} {self.eps:g}/255"

    def project(self, delta: Tensor) -> Tensor:
        """Return delta [B,...] moved to the nearest point of the ball around 0."""
        if self.norm == "Linf":
            return delta.clamp(-self.radius, self.radius)
        norms = l2(delta)
        return delta * (self.radius / norms.clamp(min=1e-12)).clamp(max=1.0)

    def ascent(self, gradient: Tensor) -> Tensor:
        """Return the direction [B,...] of steepest ascent with norm 1: the sign (Linf) or the unit gradient (L2; 0 stays 0)."""
        return gradient.sign() if self.norm == "Linf" else gradient / l2(gradient).clamp(min=1e-12)

    def size(self, delta: Tensor) -> Tensor:
        """Return the norm of each delta [B,...] -> [B], in pixel units."""
        return delta.flatten(1).abs().amax(1) if self.norm == "Linf" else delta.flatten(1).norm(dim=1)


def l2(delta: Tensor) -> Tensor:
    """Return the L2 norm of each delta [B,...], shaped for broadcasting against it."""
    return delta.flatten(1).norm(dim=1).view(-1, *[1] * (delta.ndim - 1))


@dataclass(frozen=True)
class TextBudget:
    """How far a class prompt may be rewritten: whole `words` or character `edits`, in the class name only or anywhere."""

    words: int | None = None
    edits: int | None = None
    scope: Literal["class name", "any word"] = "any word"

    def __post_init__(self) -> None:
        if (self.words is None) == (self.edits is None):
            raise UserError("threat.text needs one budget: either words or edits")
        if (self.words or self.edits or 0) < 0:
            raise UserError("threat.text: a budget of words or edits cannot be negative")

    def __str__(self) -> str:
        said = f"{self.words} words" if self.words is not None else f"{self.edits} edits"
        return said if self.scope == "any word" else f"{said} of the class name"


@dataclass(frozen=True)
class ThreatModel:
    """What may be perturbed: the image, the text, both, or nothing."""

    image: Ball | None = Ball()
    text: TextBudget | None = None
