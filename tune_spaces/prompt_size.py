"""How large must a visual prompt be? TeCoA's loss on 1 to 16 prompt tokens and on frames 1 to 8 pixels wide, CLIP frozen.

A token has 128 parameters; frames 1, 2, 4 and 8 pixels wide have 372, 720, 1,344 and 2,304. The paper reports no such sweep.
"""

from ray import tune

from robustclip.models.dress import PixelPrompt, TokenPrompt
from robustclip.sweeps.spaces import Axis

RECIPE = "demo-tokens"
SPACE = {"trainable": tune.grid_search([*(TokenPrompt(n) for n in (1, 2, 4, 8, 16)), *(PixelPrompt("pad", n) for n in (1, 2, 4, 8))])}
METRIC = "val/robust"
MODE = "max"
AXIS = Axis("trainable", "size: tokens, or width of the frame in pixels", "log", fields=("tokens", "size"))
