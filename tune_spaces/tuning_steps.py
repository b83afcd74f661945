"""How far should a prompt follow an image: how many steps, at which rate?

TPT over one TeCoA model, one to four steps at three rates. The first step of AdamW is a sign: its length is the rate, whatever the loss.
Chosen on held-out images under attacks that adapt with the defence (BPDA).
"""

from ray import tune

from robustclip.sweeps.spaces import Axis
from robustclip.test_time import TPT

RECIPE = "demo"
SPACE = {"test_time": tune.grid_search([TPT(views=8, keep=0.25, lr=lr, steps=n) for lr in (5e-3, 2e-2, 8e-2) for n in (1, 2, 4)])}
FIXED = {"validation.images": 64, "validation.steps": 5}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("test_time", "steps", fields=("steps",))
