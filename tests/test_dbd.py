"""DBD: its views are those of other libraries, its answer is the paper's, and an attacker who sees it takes back what it seems to give."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import NAMES, TEMPLATES
from faults_attacks import kept_as_png
from faults_models import probed
from PIL import Image, ImageFilter
from probes import changed, healthy
from torchvision.transforms.functional import gaussian_blur
from toys import ids_of

from robustclip.attacks import PGD
from robustclip.attacks.levels import Aimed
from robustclip.attacks.pgd import logits_of
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.evaluation.checks import run_check
from robustclip.test_time import DBD
from robustclip.test_time.dbd import directional_bias
from robustclip.views import filters
from robustclip.views.filters import compressed, filtered, gaussian, mean, median, quantised

KEYS = [(0, "test time", f"image/{i}") for i in range(4)]
BALL = Ball("Linf", 16.0)


@pytest.fixture
def base(tiny_model):
    return tiny_model.classifier(NAMES, TEMPLATES)


@pytest.fixture
def stored():
    """Smooth images of whole grey values with some noise on them, [2,3,32,32]."""
    line, g = torch.linspace(0, 6, 32), torch.Generator().manual_seed(0)
    waves = torch.stack([(line + i).sin()[:, None] * (line * (1 + i / 3)).cos() for i in range(6)]).view(2, 3, 32, 32)
    return ((0.5 + 0.3 * waves + 0.02 * torch.randn(waves.shape, generator=g)) * 255).round().clamp(0, 255) / 255


def by_pil(images, make):
    """Return what PIL makes of images [N,3,H,W]."""
    pictures = [Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy()) for image in images]
    return torch.stack([torch.from_numpy(np.asarray(make(picture)).copy()).permute(2, 0, 1) / 255 for picture in pictures])


def test_a_filter_is_that_of_other_libraries(stored):
    inside = (..., slice(5, -5), slice(5, -5))  # each library has its own edge
    for sigma in (0.5, 1.0, 1.5):
        side = 2 * int(3 * sigma + 0.5) + 1
        assert torch.allclose(gaussian(stored, sigma)[inside], gaussian_blur(stored, [side, side], [sigma, sigma])[inside], atol=1e-5)
    for side in (3, 5):
        box = F.avg_pool2d(stored, side, 1, side // 2)
        assert torch.allclose(mean(stored, side)[inside], box[inside], atol=1e-5)
        theirs = by_pil(stored, lambda picture, side=side: picture.filter(ImageFilter.MedianFilter(side)))
        assert torch.allclose(median(stored, side)[inside], theirs[inside], atol=1e-5)
    for bits in (3, 4, 5):
        grey = quantised(torch.linspace(0, 1, 4096).view(1, 1, 64, 64), bits).unique()
        assert torch.allclose(grey, torch.linspace(0, 1, 2**bits), atol=1e-6)


def test_jpeg_costs_the_more_the_lower_its_quality(stored):
    lost = [float((compressed(stored, quality) - stored).abs().mean()) for quality in (90, 70, 50, 10)]
    assert lost == sorted(lost)
    assert 0.3 / 255 < lost[0] < lost[-1] < 0.1
    assert torch.equal((255 * compressed(stored, 70)).round() / 255, compressed(stored, 70)), "it shows 8-bit values"
    flat = torch.full((1, 3, 16, 16), 128 / 255)
    assert torch.allclose(compressed(flat, 50), flat, atol=1e-6)


def test_views_depend_on_their_image_and_key_alone_and_keep_a_gradient():
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = filtered(images, KEYS)
    assert whole.shape == (4, filters.COUNT, 3, 16, 16)
    assert torch.equal(whole, filtered(images.flip(0), KEYS[::-1]).flip(0))
    assert torch.equal(whole, torch.cat([filtered(images[i : i + 1], KEYS[i : i + 1]) for i in range(4)]))
    other = filtered(images, [(1, *key[1:]) for key in KEYS])
    drawn = [i for i in range(filters.COUNT) if not torch.equal(whole[:, i], other[:, i])]
    assert drawn == [0, 1, 2], "only the noise is drawn"
    assert (whole.min(), whole.max()) >= (0, 0)
    assert whole.max() <= 1 + 1e-6
    grey = torch.full((1, 3, 64, 64), 0.5)
    assert torch.allclose(255 * filtered(grey, KEYS[:1])[0, :3].flatten(1).std(1), torch.tensor(filters.SIGMAS), rtol=0.03)
    x = images.clone().requires_grad_()
    for i, view in enumerate(filtered(x, KEYS).unbind(1)):
        (g,) = torch.autograd.grad(view.square().sum(), x, retain_graph=True)
        assert (g != 0).float().mean() > 0.2, f"an attacker sees through view {i}"


def as_published(base, settings, image, views):
    """Return the logits [K] of one image [3,H,W] with these views [V,3,H,W], a line of the paper at a time."""
    f = F.normalize(base.features(torch.cat([image[None], views])), dim=-1)
    p = base.scores(f[1:]).softmax(-1)
    entropies = [float(-(each * each.log()).sum()) for each in p]
    kept = sorted(range(len(views)), key=entropies.__getitem__)[: settings.kept]
    moves = [f[1 + i] - f[0] for i in kept]
    d = sum(moves) / len(moves)
    score = sum(float(move @ d / move.norm() / d.norm()) for move in moves) / len(moves)
    return base.scores(F.normalize(f[0] + (settings.amplify if score > settings.threshold else 1) * d, dim=0)), score


def test_the_answer_is_the_papers(base, pictures):
    images, ids = pictures(6)[0], ids_of(6)
    streams = []
    for settings in (DBD(crops=3, kept=6, threshold=0.75), DBD(crops=0, kept=16), DBD()):
        defence = settings.classifier(base, 0)
        keyed = defence.of(ids)
        with torch.no_grad():
            theirs = [as_published(base, settings, *each) for each in zip(images, defence.views(images, keyed.keys), strict=True)]
            assert torch.allclose(keyed(images), torch.stack([logits for logits, _ in theirs]), atol=1e-3)
        streams += [score > settings.threshold for _, score in theirs]
    assert set(streams) == {True, False}, "both streams were met"


def test_what_settings_mean_at_their_ends(base, pictures):
    images, keys = pictures(4)[0], KEYS
    with torch.no_grad():
        for settings, features in (
            (DBD(threshold=-1.0, amplify=0.0), lambda start, kept: start),
            (DBD(threshold=1.0), lambda start, kept: start + kept.mean(1)),
        ):
            defence = settings.classifier(base, 0)
            start, steps = defence.steps(images, defence.views(images, keys))
            choice = defence.adapt(images, keys, False)
            kept = steps[torch.arange(4)[:, None], choice.kept]
            assert torch.allclose(defence(images, keys), base.scores(F.normalize(features(start, kept), dim=-1)), atol=1e-3)


def test_the_score_says_whether_views_go_one_way():
    way = torch.eye(4)[:1].expand(3, -1)
    steps = torch.stack([way, way * torch.tensor([[1.0], [-1.0], [0.0]]), torch.zeros(3, 4)]).requires_grad_()
    score = directional_bias(0.1 * steps)
    assert torch.allclose(score, torch.tensor([1.0, 0.0, 0.0]), atol=1e-6)
    assert torch.autograd.grad(score.sum(), steps)[0].isfinite().all(), "a view that changes nothing has no direction"


def test_the_attackers_gradient_is_taken_behind_what_is_rounded(base, pictures, monkeypatch):
    """Of one view alone, rounded to three bits: logits and gradient are those of the model at the rounded image."""
    images = pictures(4)[0]
    defence = DBD(crops=0, kept=1, amplify=1.0).classifier(base, 0)
    monkeypatch.setattr(defence, "views", lambda images, keys: quantised(images, 3)[:, None])

    def of(model, at):
        x = at.clone().requires_grad_()
        logits = model(x)
        return logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), x)[0]

    for ours, theirs in zip(of(defence, images), of(base, quantised(images, 3)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_what_it_gives_an_ignorant_attacker_it_gives_back_to_one_who_knows(base, pictures):
    images, _, ids = pictures(16)
    with torch.no_grad():
        labels = base(images).argmax(1)
    defence = DBD().classifier(base, 0)

    def right(model, found):
        return float((logits_of(model, found, ids, 8).argmax(1) == labels).float().mean())

    found = {level: Aimed(level, PGD(10))(defence, images, labels, ids, BALL, 0, 8).images for level in ("A1", "A3")}
    assert right(defence, images) >= 0.9, "clean images are hardly touched"
    assert right(base, found["A1"]) < 0.5
    assert right(defence, found["A1"]) >= 0.9, "robust, says an attack on the model under it"
    assert right(defence, found["A3"]) <= right(defence, found["A1"]) - 0.2, "and it is not, says one that goes through it"
    bias = [score_of(defence, each, ids) for each in (images, found["A1"])]
    assert (bias[1] > bias[0]).float().mean() > 0.8, "the paper's finding: what is attacked is pulled one way"


def score_of(defence, images, ids):
    """Return the DB-score [N] over all views."""
    with torch.no_grad():
        return directional_bias(defence.steps(images, defence.views(images, defence.of(ids).keys))[1])


def test_attacked_images_kept_as_png_on_their_way_to_it_are_found(tiny_model, pictures, monkeypatch):
    subject = healthy(tiny_model, pictures)
    defence = DBD(crops=3, kept=6).classifier(subject.classifier, 0)
    subject = changed(subject, classifier=defence, attacked=defence)
    for number in ("11", "13"):
        assert run_check(subject, number).passed is True
    found = run_check(kept_as_png("grey-box A0")(subject, monkeypatch), "11")
    assert found.passed is False
    assert "8-bit file" in found.reason


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda model: DBD(kept=32), "keeps 32 views of 15 crops and 16 others"),
        (lambda model: DBD(kept=0), "kept is 0: it takes a whole number of at least 1"),
        (lambda model: DBD(threshold=1.5), "threshold is 1.5"),
        (lambda model: DBD().classifier(probed(model).classifier(NAMES, TEMPLATES), 0), "a linear readout: dbd moves unit features"),
    ],
)
def test_what_cannot_be_is_refused(tiny_model, make, said):
    with pytest.raises(UserError, match=said):
        make(tiny_model)
