"""Which visual prompt should train: pixels or tokens, and where? Every design with about 2,304 parameters, CLIP frozen.

A frame of 8 pixels, 18 tokens and 6 tokens before each of three blocks have 2,304, a square of 28 pixels 2,352; every pixel cannot be
fewer than 3,072. As in the paper, as many parameters of the tower itself are the control, at the same learning rate.
"""

from ray import tune

from robustclip.models.dress import PixelPrompt, TokenPrompt
from robustclip.sweeps.spaces import Axis, Point, Published
from robustclip.training.trainables import SameSize

DESIGNS = (
    TokenPrompt(18),
    TokenPrompt(6, deep=True),
    PixelPrompt("pad", 8),
    PixelPrompt("fixed patch", 28),
    PixelPrompt("random patch", 28),
    PixelPrompt("whole", 32),
    SameSize(2304),
)
RECIPE = "demo-tokens"
SPACE = {"trainable": tune.grid_search(list(DESIGNS))}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("trainable", "what trains", "categorical")
PUBLISHED = Published(
    "TeCoA, ViT-B/32, mean of 16 sets, PGD-100 at ε=1 (arXiv:2212.07016, Fig. 6; it shows robust accuracy only)",
    "what trains",
    {"TeCoA": (Point("token prompt", None, 32.00), Point("image prompt", None, 20.51), Point("partial fine-tuning", None, 6.47))},
)
