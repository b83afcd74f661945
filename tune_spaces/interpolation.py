"""Is a model between CLIP and the fine-tuned one better than both? One training, evaluated at five places on the way.

alpha 0 is CLIP, alpha 1 the fine-tuned model; in between lie the weights (1 - alpha) CLIP + alpha fine-tuned of the visual tower. Each is
validated on the same held-out images.
"""

from ray import tune

from robustclip.sweeps.spaces import Axis, Point, Published

RECIPE = "demo"
SPACE = {"interpolation": tune.grid_search([0.0, 0.25, 0.5, 0.75, 1.0])}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("interpolation", "alpha: 0 is CLIP, 1 the fine-tuned model")
PUBLISHED = Published(
    "FT(TeCoA), ViT-B/32, PGD-100 at ε=1, alphas not printed; best: the paper's best point between (arXiv:2212.07016, Fig. 7)",
    "from CLIP to the fine-tuned model",
    {
        "SUN397": (Point("CLIP", 57.67, 1.02), Point("best", 52.86, 30.85), Point("fine-tuned", 51.28, 29.81)),
        "Food101": (Point("CLIP", 83.15, 3.95), Point("best", 61.34, 29.21), Point("fine-tuned", 55.37, 27.99)),
        "Flowers102": (Point("CLIP", 65.64, 1.19), Point("best", 52.45, 30.86), Point("fine-tuned", 50.92, 30.69)),
        "Caltech101": (Point("CLIP", 91.75, 24.63), Point("best", 85.32, 69.51), Point("fine-tuned", 83.51, 69.07)),
    },
)
