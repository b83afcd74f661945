"""Does training the first blocks buy as much as the whole tower, at equal cost and eps?

After R-Adapt (arXiv:2603.12799), which finds the robustness of adversarially fine-tuned CLIP in the embedding and the first attention, and
freezes all weights behind an input filter and a blended first attention. Here weights train: the embedding alone (0 blocks) or with 1 or 2
of the embedded model's 3 blocks, against the last 1 or 2 and the whole tower, and a filter of the pixels that learns. Every trial takes as
many steps on the same images under the same attack, whose passes go through the whole tower whatever trains. Two learning rates each, since
a filter needs larger ones than weights do, and no weight decay: as in `trainable`, whose runs of the tower and of the last block these are.
"""

from ray import tune

from robustclip.models.dress import InputFilter
from robustclip.sweeps.spaces import Axis
from robustclip.training.trainables import FirstBlocks, LastBlocks, VisualTower

FIRST = (FirstBlocks(0), FirstBlocks(1), FirstBlocks(2))
PARTS = (VisualTower(), *FIRST, LastBlocks(1), LastBlocks(2), InputFilter(3), InputFilter(7))
RECIPE = "demo"
SPACE = {"trainable": tune.grid_search(list(PARTS)), "optim.lr": tune.grid_search([1e-3, 1e-2])}
FIXED = {"optim.weight_decay": 0.0}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("trainable", "what trains", "categorical")
