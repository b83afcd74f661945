"""What does each training method of TeCoA's comparison keep of zero-shot skill, and what does it buy? Tower and deep prompt, two seeds.

Every trial is another recipe; `benchmarks/text_guidance.py` makes the paper's table of them. Use `--protocol strong`.
"""

from ray import tune

from robustclip.sweeps.spaces import Axis

RECIPE = "demo"
TOWER = ["demo", "demo-ce", "demo-adv", "demo-coadv", "demo-imgcoadv", "demo-pseudo", "demo-fare", "demo-pmg"]
PROMPT = ["demo-deep", "demo-deep-ce", "demo-deep-adv", "demo-deep-coadv", "demo-deep-imgcoadv", "demo-deep-pseudo"]
SPACE = {"recipe": tune.grid_search(TOWER + PROMPT), "seed": tune.grid_search([0, 1])}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("recipe", "training method", "categorical")
