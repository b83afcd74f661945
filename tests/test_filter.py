"""The input filter: the plain model at first, a convolution of the normalised image, seen by attacks, saved and worn again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parts import NAMES, TEMPLATES, config, learned, learner_of, pixels, step
from torchvision.transforms.functional import gaussian_blur

from robustclip import names as models
from robustclip.attacks import PGD
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.defenses import TeCoA
from robustclip.models import checkpoints
from robustclip.models.dress import InputFilter, dressed
from robustclip.models.prompts import PixelFilter
from robustclip.training.installing import install


def wearing(model, size, kernel):
    """Return a model that wears a filter of this kernel [3,3,size,size]."""
    worn, (parameter,) = install(InputFilter(size), model, 0, NAMES)
    parameter.data.copy_(kernel)
    worn.prompt.requires_grad_(False)
    return worn


@pytest.mark.parametrize("kind", ["vit", "resnet", "siglip", "timm"])
def test_at_the_start_it_is_the_plain_model_to_the_bit(kind, make_model, pictures):
    plain = make_model(kind)
    x, _, _ = pictures(4, plain.preprocess.size)
    worn, parameters = install(InputFilter(5), make_model(kind), 0, NAMES)
    assert [p.shape for p in parameters] == [(3, 3, 5, 5)]
    with torch.no_grad():
        assert torch.equal(worn.classifier(NAMES, TEMPLATES)(x), plain.classifier(NAMES, TEMPLATES)(x))


def test_it_adds_what_lies_beside_a_pixel_as_its_kernel_weighs_it():
    """One entry of the kernel: green is added the value that red has one row up and two columns to the right, beyond the border 0."""
    part, x = PixelFilter(16, 5), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        part.kernel[1, 0, 1, 4] = 0.5
        found = part.on_pixels(x) - x
    expected = torch.zeros_like(x)
    expected[:, 1, 1:, :-2] = 0.5 * x[:, 0, :-1, 2:]
    torch.testing.assert_close(found, expected)


def test_the_papers_gaussian_is_one_of_them(tiny_model, pictures):
    """Away from the border it is torchvision's blur of the image, which stands before the normalisation: a blur does not mind."""
    dot = torch.nn.functional.pad(torch.ones(1, 1, 1, 1), (6,) * 4)
    blur = gaussian_blur(dot, [5, 5], [1.0, 1.0])[0, 0, 4:-4, 4:-4]
    kernel = torch.zeros(3, 3, 5, 5)
    kernel[range(3), range(3)] = blur
    kernel[range(3), range(3), 2, 2] -= 1
    (x, _, _), classifier = pictures(3), wearing(tiny_model, 5, kernel).classifier(NAMES, TEMPLATES)
    met = []
    handle = classifier.clip.visual.conv1.register_forward_pre_hook(lambda module, args: met.append(args[0]))
    with torch.no_grad():
        classifier(x)
    handle.remove()
    expected = (gaussian_blur(x, [5, 5], [1.0, 1.0]) - classifier.mean) / classifier.std
    torch.testing.assert_close(met[0][..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-5, rtol=1e-5)
    assert (met[0] - (x - classifier.mean) / classifier.std).abs().max() > 1e-2


def test_attacks_go_through_it(tiny_model, pictures):
    """A filter that shows no red: an attack has no gradient there, and one made on the plain model has one."""
    x, y, ids = pictures(8)
    kernel = torch.zeros(3, 3, 3, 3)
    kernel[0, 0, 1, 1] = -1
    colours = {}
    for name, model in (("plain", tiny_model), ("blind", wearing(tiny_model.copy(), 3, kernel))):
        classifier = model.classifier(NAMES, TEMPLATES)
        seen = x.clone().requires_grad_()
        torch.nn.functional.cross_entropy(classifier(seen), y).backward()
        colours[name] = seen.grad.abs().amax((0, 2, 3))
        bad = PGD(3)(classifier, x, y, ids, Ball("Linf", 8.0), 0).trace.zero_gradient
        assert float(bad.max()) == pytest.approx(0.0 if name == "plain" else 1 / 3)  # of images that it has not fooled at once
    assert bool((colours["plain"] > 0).all())
    assert (colours["blind"] > 0).tolist() == [False, True, True]


def test_a_trained_filter_is_saved_and_worn_again(make_model, pictures, tmp_path):
    plain, (x, y, ids) = make_model(), pictures(8)
    learner = learner_of(make_model(), config(TeCoA(), InputFilter(3), batch=8))
    for _ in range(2):
        step(learner, (pixels(x), y, ids))
    learner.finish()
    assert learned(learner).abs().max() > 1e-2
    with torch.no_grad():
        trained, before = learner.student(x), plain.classifier(NAMES, TEMPLATES)(x)
    assert (trained - before).abs().max() > 1e-3
    model = learner.model
    for turn in ("once", "twice"):  # the second time from the loaded model, whose card alone knows of the filter
        folder = str(tmp_path / turn)
        checkpoints.save(model, folder)
        model = models.load(folder)
        assert isinstance(model.prompt, PixelFilter)
        assert model.card["trainable"] == {"type": "InputFilter", "size": 3}
        assert model.sha256 == learner.model.sha256 != plain.sha256
        assert not any(p.requires_grad for p in model.prompt.parameters())
        with torch.no_grad():
            torch.testing.assert_close(model.classifier(NAMES, TEMPLATES)(x), trained, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, plain.clip.state_dict()[name]) for name, value in model.clip.state_dict().items())
    checkpoints.save(plain, str(tmp_path / "plain"))
    assert models.identity(str(tmp_path / "once")) == models.identity(str(tmp_path / "twice")) != models.identity(str(tmp_path / "plain"))
    (Path(folder) / "prompt.safetensors").unlink()
    with pytest.raises(UserError, match=r"its folder has no prompt\.safetensors"):
        models.load(folder)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, r"trainable\.size is 0: it takes a whole number of at least 1"),
        (4, r"trainable\.size is 4: a filter has a pixel in its middle, so its side is odd"),
        (17, r"trainable\.size is 17: a filter of 16 px images is at most 16 pixels wide"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(size, said, tiny_model):
    with pytest.raises(UserError, match=said):
        install(InputFilter(size), tiny_model, 0, NAMES)


def test_a_newer_filter_is_refused(tiny_model):
    with pytest.raises(UserError, match=r"names an unknown trainable .*InputFilter.*: upgrade robustclip"):
        dressed(replace(tiny_model, card={"trainable": {"type": "InputFilter", "size": 3, "layers": 2}}))
