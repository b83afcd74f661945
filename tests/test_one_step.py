"""Published recipes on ViT-B/32 with random weights: a step runs, and as many parameters learn as the papers say."""

import pytest
from one_step import one_step

# ViT-B/32's whole tower; 200 tokens of width 768; a frame of 30 px at 224 px (TeCoA, section 5).
PARAMETERS = {"tecoa-b32": "87,849,216", "tecoa-vp-b32": "153,600", "tecoa-pad-b32": "69,840", "fare-b32": "87,849,216"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PARAMETERS)
def test_one_step_of_a_published_recipe_on_vit_b_32(name):
    assert f" {PARAMETERS[name]} parameters   loss " in one_step(name, images=2)
