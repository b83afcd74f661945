"""How many views does a prompt need that is tuned on them, and how many does the free baseline?

TPT and the ensemble of views over one TeCoA model. What is chosen is chosen on held-out images under attacks that adapt with the defence
(BPDA): against an attacker who does not know of it, more views always look better.
"""

from ray import tune

from robustclip.sweeps.spaces import Axis
from robustclip.test_time import TPT, ViewEnsemble

RECIPE = "demo"
SPACE = {"test_time": tune.grid_search([kind(views=n, keep=0.25) for kind in (TPT, ViewEnsemble) for n in (4, 8, 16)])}
FIXED = {"validation.images": 64, "validation.steps": 5}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("test_time", "views of an image", "log", fields=("views",))
