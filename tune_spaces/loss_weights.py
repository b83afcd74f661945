"""Which of MMCoA's two terms buys what: attacked images against clean prompts, or clean images against rewritten prompts?

Use `--protocol multimodal`, which attacks images, prompts and both.
"""

from ray import tune

from robustclip.sweeps.spaces import Axis

RECIPE = "demo-mmcoa"
SPACE = {"defense.lambda_img": tune.grid_search([0.1, 0.5, 1.0]), "defense.lambda_txt": tune.grid_search([0.1, 0.5, 1.0])}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("defense.lambda_img", "weight of the image term")
