"""Which part of CLIP should train: all of the visual tower, a part of it, a change of low rank, or a prompt in front of it?

Each at two learning rates, since prompts need larger ones than weights do, and without weight decay. SameSize has the 1,024 parameters of
8 tokens. A linear head is left out: it knows its own classes and no others.
"""

from ray import tune

from robustclip.models.dress import PixelPrompt, TokenPrompt
from robustclip.sweeps.spaces import Axis
from robustclip.training.trainables import LastBlocks, LoRA, NormsAndBiases, SameSize, VisualTower

PARTS = (VisualTower(), LastBlocks(1), LoRA(8, 8.0), NormsAndBiases(), SameSize(1024), TokenPrompt(8), PixelPrompt("pad", 4))
RECIPE = "demo"
SPACE = {"trainable": tune.grid_search(list(PARTS)), "optim.lr": tune.grid_search([1e-3, 1e-2])}
FIXED = {"optim.weight_decay": 0.0}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("trainable", "what trains", "categorical")
