"""What does each way of training protect: images, prompts, or both attacked together? MMCoA, its ablations and its peers, two seeds.

Every trial is another recipe; `benchmarks/multimodal.py` makes the table of them. Use `--protocol multimodal`.
"""

from ray import tune

from robustclip.sweeps.spaces import Axis

RECIPE = "demo-mmcoa"
RECIPES = ["demo-mmcoa", "demo-mmcoa-image", "demo-mmcoa-text", "demo-contrastive", "demo-leaf", "demo-fare", "demo"]
SPACE = {"recipe": tune.grid_search(RECIPES), "seed": tune.grid_search([0, 1])}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("recipe", "training method", "categorical")
