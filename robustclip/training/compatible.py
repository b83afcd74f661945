"""Which defence goes with which trainable, which of them learn from descriptions of classes, and why another pair makes no sense."""

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
    if defense.reads == "captions" and not isinstance(trainable, Towers):
        raise UserError(f"{type(defense).__name__} is CLIP's own training, of images and texts together: choose Towers")
    if isinstance(trainable, LinearHead) and isinstance(defense, Paired):
        raise UserError(f"{type(defense).__name__} compares images with prompts, which LinearHead does not read: choose another trainable")
    if isinstance(trainable, Towers) and defense.reads not in ("texts", "captions") and not isinstance(defense, Paired):
        raise UserError(
            f"{type(defense).__name__} trains against fixed texts, from which the text tower of Towers would learn nothing: "
            "choose VisualTower, or a loss over pairs (MMCoA, CleanContrastive)"
        )


def check_described(defense: Defense, trainable: Trainable) -> None:
    """Raise UserError for a defence and a trainable that descriptions of the classes would teach nothing, or that rewrite prompts."""
    if isinstance(defense, Paired) or defense.reads not in ("logits", "captions"):
        raise UserError(
            f"{type(defense).__name__} does not learn from scores of classes, which is what descriptions change: leave them out, or take a "
            "defence that does, such as TeCoA, TRADES or PMGAFT"
        )
    if isinstance(trainable, LinearHead) or (isinstance(trainable, JointTokens) and trainable.design != "visual"):
        raise UserError(
            f"{type(trainable).__name__} brings words or scores of its own in the place of class texts: leave the descriptions out, or "
            "choose a trainable of the visual tower alone"
        )
