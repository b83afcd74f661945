"""Which part of CLIP should MMCoA train: both towers, one, layer norms and biases, or the last visual block?

Images and prompts are attacked whatever trains. `benchmarks/study.py` sets images of the fine-tuning classes apart from the suite. Use
`--protocol study`, which attacks images, prompts and both, and `--seed 1` for a second seed.
"""

from ray import tune

from robustclip.sweeps.spaces import Axis
from robustclip.training.trainables import LastBlocks, NormsAndBiases, Towers, VisualTower

PARTS = (Towers(), Towers("text"), VisualTower(), Towers(part="norms and biases"), NormsAndBiases(), LastBlocks(1))
RECIPE = "demo-mmcoa"
SPACE = {"trainable": tune.grid_search(list(PARTS))}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("trainable", "what trains", "categorical")
