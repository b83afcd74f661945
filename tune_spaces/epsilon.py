"""How much clean accuracy does robustness cost? One TeCoA run per training eps; 0 is clean fine-tuning, the control.

The trial shown as chosen is the one with the best accuracy under attack on held-out images of the fine-tuning set.
"""

from ray import tune

from robustclip.sweeps.spaces import Axis, Point, Published

RECIPE = "demo"
SPACE = {"threat.image.eps": tune.grid_search([4.0, 2.0, 1.0, 0.0])}  # dearest first: two at a time finish together
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("threat.image.eps", "ε of training (in 1/255)")
PUBLISHED = Published(
    "FT(TeCoA), ViT-B/32, mean of 16 sets, PGD-100 at the ε of training (arXiv:2212.07016, Fig. 5)",
    "ε of training and of the attack (in 1/255)",
    {"FT(TeCoA)": (Point(1.0, 55.97, 38.18), Point(2.0, 52.55, 25.10), Point(4.0, 50.96, 12.51))},
)
