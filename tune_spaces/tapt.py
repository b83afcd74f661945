"""Does a prompt that follows each image protect it? TAPT on adversarially trained prompts of each design: V, VLI and VLJ of its paper.

Every trial trains prompts at the ε of the protocol `ladder`, takes the statistics of its training images through them, and adapts them to
every image. Aligned with those statistics alone (`gamma` 1), at a tenth of the rate of training; `benchmarks/test_time.py` aligns with the
statistics of clean prompts too. Use `--protocol ladder`, which attacks by what the attacker knows.
"""

from ray import tune

from robustclip.sweeps.spaces import Axis
from robustclip.test_time import TAPT

RECIPE = "demo-advvpt"
SPACE = {
    "recipe": tune.grid_search(["demo-advvpt", "demo-advvlp", "demo-advmaple"]),
    "test_time": tune.grid_search([TAPT(views=16, keep=0.25, gamma=1.0, lr=1e-3)]),
}
FIXED = {"threat.image.eps": 2.0, "validation.eps": 2.0, "validation.images": 64, "validation.steps": 5}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("recipe", "what was trained before", "categorical")
