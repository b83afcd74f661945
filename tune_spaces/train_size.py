"""How many labelled images per class does robustness take, for the whole tower and for prompt tokens?

1, 4, 16 and 64 of each of the 288 classes, and all of 27,000, which are 93 on average: the rarest class has 69 that are not held out. The
paper has 1, 5, 50 and all of ImageNet. As in the paper every size trains for as many epochs, three, so fewer images are fewer steps too: 27
at 1 per class, 2,505 at all. The warm-up is shorter than the smallest run.
"""

from ray import tune

from robustclip.sweeps.spaces import Axis, Point, Published

RECIPE = "demo"
SPACE = {
    "data.per_class": tune.grid_search([None, 64, 16, 4, 1]),  # dearest first: two at a time finish together
    "recipe": tune.grid_search(["demo", "demo-tokens"]),
}
FIXED = {"data.n": None, "data.rendered": 27_000, "optim.warmup": 10}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("data.per_class", "training images per class", "ordered")
PUBLISHED = Published(
    "TeCoA, ViT-B/32, mean of 16 sets, PGD-100 at ε=1; VP has 5 tokens, at all images 200 (arXiv:2212.07016, Fig. 4)",
    "ImageNet images per class",
    {
        "FT": (Point("1", 56.34, 19.62), Point("5", 53.91, 19.89), Point("50", 53.40, 31.87), Point("all", 55.97, 38.18)),
        "VP": (Point("1", 50.13, 19.68), Point("5", 51.31, 22.25), Point("50", 51.71, 20.10), Point("all", 53.00, 32.00)),
    },
)
