"""Two models as one by their names: an ensemble, or the towers of two."""

from dataclasses import dataclass
from typing import ClassVar

from robustclip.base.errors import UserError
from robustclip.models.combined import hash_of, together, two_towers
from robustclip.models.model import Model
from robustclip.names.single import Named

ENSEMBLE, TOWERS = "ensemble:", "towers:"


@dataclass(frozen=True)
class Two:
    """Two single models; raises UserError for one model twice."""

    parts: tuple[Named, ...]
    prefix: ClassVar[str]

    def __post_init__(self) -> None:
        if self.parts[0] == self.parts[1]:
            raise UserError(f"{self}: {self.written()}")

    @classmethod
    def written(cls) -> str:
        """Return how it is written, as the end of a sentence."""
        return f"it is of two different models, written {cls.prefix}A,B"

    def __str__(self) -> str:
        return f"{self.prefix}{','.join(map(str, self.parts))}"

    def display_name(self) -> str:
        return f"{self.prefix.removesuffix(':')}-{'+'.join(part.display_name() for part in self.parts)}"

    def selection(self) -> frozenset[str] | None:
        known = [ids for part in self.parts if (ids := part.selection()) is not None]
        return frozenset().union(*known) if known else None

    def folders(self) -> list[str]:
        return [folder for part in self.parts for folder in part.folders()]


@dataclass(frozen=True)
class TwoTowers(Two):
    """`towers:A,B`: the visual tower of A with the text tower of B; both fine-tuned from one model, or one is it."""

    prefix = TOWERS

    def load(self) -> Model:
        image, text = (part.load() for part in self.parts)
        origins = {part: model.card.get("base", {}).get("sha256") or part.identity() for part, model in zip(self.parts, (image, text))}
        if len(set(origins.values())) > 1:
            said = ", ".join(f"{part} from {sha256[:12]}..." for part, sha256 in origins.items())
            raise UserError(f"{self}: two towers understand each other only if one model was before both; {said}")
        return two_towers(image, text, str(self))

    def identity(self) -> str:
        return hash_of("towers", *(part.identity() for part in self.parts))

    def input_size(self) -> int:
        return self.parts[0].input_size()


@dataclass(frozen=True)
class Ensemble(Two):
    """`ensemble:A,B`: one classifier whose logits are the mean of two models', each with its own preprocessing, prompt and text tower."""

    prefix = ENSEMBLE

    def load(self) -> Model:
        return together(str(self), [part.load() for part in self.parts])

    def identity(self) -> str:
        return hash_of("ensemble", *sorted(part.identity() for part in self.parts))  # in either order: a mean has none

    def input_size(self) -> int:
        return max(part.input_size() for part in self.parts)
