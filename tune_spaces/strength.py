"""How strong should MMCoA's attacks be while it trains: eps of the image, words of the prompt?

`benchmarks/study.py` sets images of the fine-tuning classes apart from the suite.
Use `--protocol study`, which attacks images, prompts and both, and `--seed 1` for a second seed.
"""

from ray import tune

from robustclip.sweeps.spaces import Axis

RECIPE = "demo-mmcoa"
SPACE = {"threat.image.eps": tune.grid_search([4.0, 2.0, 1.0]), "defense.text.budget.words": tune.grid_search([1, 2])}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("threat.image.eps", "ε of training (in 1/255)")
