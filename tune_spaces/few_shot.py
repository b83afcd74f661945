"""How many labelled images per class do MMCoA and TeCoA need to protect images and prompts?

The sizes of `train_size`, whose TeCoA runs count. `benchmarks/study.py` sets images of the fine-tuning classes apart from the suite. Use
`--protocol study`, which attacks images, prompts and both, and `--seed 1` for a second seed.
"""

from ray import tune

from robustclip.sweeps.spaces import Axis

RECIPE = "demo-mmcoa"
SPACE = {
    "data.per_class": tune.grid_search([None, 64, 16, 4, 1]),
    "recipe": tune.grid_search(["demo-mmcoa", "demo"]),
}
FIXED = {"data.n": None, "data.rendered": 27_000, "optim.warmup": 10}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("data.per_class", "training images per class", "ordered")
