"""Does it help to align what an image looks like to the blocks with training images, and how strongly?

TAPT over adversarially trained prompts of both towers, aligned with the statistics of their own training images. With one step only the
signs of the gradient count, so a weight acts through which of the two terms decides them. Chosen on held-out images under attacks that
adapt with the defence (BPDA).
"""

from ray import tune

from robustclip.sweeps.spaces import Axis
from robustclip.test_time import TAPT

RECIPE = "demo-advvlp"
TUNED = [TAPT(views=8, keep=0.25, gamma=1.0, lr=1e-2, weight=weight) for weight in (0.0, 1.0, 10.0, 100.0)]
SPACE = {"test_time": tune.grid_search(TUNED)}
FIXED = {"validation.images": 64, "validation.steps": 5}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("test_time", "weight of the alignment", fields=("weight",))
