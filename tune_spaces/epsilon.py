"""How much clean accuracy does robustness cost? One TeCoA run per training eps; 0 is clean fine-tuning, the control.

The trial shown as chosen is the one with the best accuracy under PGD on held-out images of the fine-tuning set.
"""

from ray import tune

RECIPE = "demo"
SPACE = {"threat.image.eps": tune.grid_search([4.0, 2.0, 1.0, 0.0])}  # dearest first: two at a time finish together
METRIC = "val/robust"
MODE = "max"
