"""Which part of CLIP should MMCoA train: both towers, one, layer norms and biases, or the last visual block?

Images and prompts are attacked whatever trains. Use `--protocol multimodal`, which attacks images, prompts and both.
"""

from ray import tune

from robustclip.spaces import Axis
from robustclip.trainables import LastBlocks, NormsAndBiases, Towers, VisualTower

PARTS = (Towers(), Towers("text"), VisualTower(), Towers(part="norms and biases"), NormsAndBiases(), LastBlocks(1))
RECIPE = "demo-mmcoa"
SPACE = {"trainable": tune.grid_search(list(PARTS))}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("trainable", "what trains", "categorical")
