"""Do labels and the original features together make a better objective than either? TeCoA's loss plus FARE's, in five proportions.

On the embedded CLIP, FARE's loss starts ten times as large as TeCoA's, so that at (1, 0.1) both weigh the same. The attack raises the
same sum.
"""

from ray import tune

from robustclip.defenses import FARE, Mix, TeCoA
from robustclip.sweeps.spaces import Axis

RECIPE = "demo"
SPACE = {"defense.weights": tune.grid_search([(1.0, 0.0), (1.0, 0.01), (1.0, 0.1), (1.0, 1.0), (0.0, 1.0)])}
FIXED = {"defense": Mix(parts=(TeCoA(), FARE()))}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("defense.weights", "weights of (TeCoA, FARE)", "categorical")
