"""Which defence goes with which trainable, and why another pair makes no sense."""

from robustclip.base.errors import UserError
from robustclip.defenses import Defense, Paired
from robustclip.models.dress import JointTokens, LinearHead
from robustclip.training.trainables import Towers, Trainable


def check_pair(defense: Defense, trainable: Trainable) -> None:
    """Raise UserError for a defence that a trainable cannot serve."""
    if isinstance(trainable, LinearHead) and defense.reads == "features":
        raise UserError(
            f"{type(defense).__name__} works on the features of the visual tower, which LinearHead leaves as they are: "
            "choose another trainable"
        )
    if isinstance(trainable, JointTokens) and trainable.design == "text" and defense.reads == "features":
        raise UserError(
            f"{type(defense).__name__} works on the features of the visual tower, which a prompt in the texts leaves as they are: "
            "choose another trainable"
        )
    if isinstance(trainable, JointTokens) and trainable.design != "visual" and isinstance(defense, Paired):
        raise UserError(f"{type(defense).__name__} trains the towers, not tokens in the texts: choose Towers or VisualTower")
    if defense.reads == "texts" and not (isinstance(trainable, Towers) and trainable.which == "text"):
        raise UserError(f"{type(defense).__name__} trains the text tower alone: choose Towers with which=text")
    if isinstance(trainable, LinearHead) and isinstance(defense, Paired):
        raise UserError(f"{type(defense).__name__} compares images with prompts, which LinearHead does not read: choose another trainable")
    if isinstance(trainable, Towers) and defense.reads != "texts" and not isinstance(defense, Paired):
        raise UserError(
            f"{type(defense).__name__} trains against fixed texts, from which the text tower of Towers would learn nothing: "
            "choose VisualTower, or a loss over pairs (MMCoA, CleanContrastive)"
        )
