"""What the tests share: tiny random CLIP models, pictures a model can learn from, and one local Ray for all tests that need it."""

import copy
import logging
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis.internal.conjecture import providers
from torch import Tensor

from robustclip.base.stopping import SIGNALS
from robustclip.base.values import override
from robustclip.models.checkpoints import build, save
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.model import FORMAT, Model
from robustclip.models.tokenizers import cut_tokenizer
from robustclip.runtime.cluster import start
from robustclip.runtime.tracking import Tracker
from robustclip.training.job import Job, prepare
from robustclip.training.recipes import RECIPES

for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):  # a test must not reach somebody's server
    os.environ.pop(name, None)
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("tests")
# It also draws constants that it finds in whatever modules are loaded: what a test tries would depend on the tests before it.
NO_CONSTANTS = providers.Constants()
providers._get_local_constants = lambda: NO_CONSTANTS


MERGES = 200
TEXT = {"context_length": 24, "vocab_size": 512 + MERGES + 2, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
TIMM = {"timm_model_name": "test_vit", "image_size": 32, "timm_pool": "map", "timm_proj": "none"}
# SigLIP: a bias and a scale as after its training, a text tower that looks both ways and speaks by its last token.
SIGLIP_TEXT = TEXT | {"pool_type": "last", "no_causal_mask": True, "proj_bias": True}
SIGLIP = {"custom_text": True, "text_cfg": SIGLIP_TEXT, "init_logit_bias": -13.0, "init_logit_scale": math.log(100)}
STATISTICS = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic"}
KINDS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT},
    "resnet": {"embed_dim": 16, "vision_cfg": RESNET, "text_cfg": TEXT},
    "siglip": {"embed_dim": 16, "vision_cfg": VIT} | SIGLIP,
    "timm": {"embed_dim": 64, "vision_cfg": TIMM} | SIGLIP,
}
COLOURS = {"red": (0.8, 0.2, 0.2), "green": (0.2, 0.8, 0.2), "blue": (0.2, 0.2, 0.8), "grey": (0.5, 0.5, 0.5)}
NAMES, TEMPLATES = tuple(COLOURS), ("a photo of a {}.", "a {} thing.")


@pytest.hookimpl(tryfirst=True)  # before xdist, which reads the marks in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep all tests that need Ray in one process where the tests are shared out, and begin with those that may take longest.

    Tests in one process share one Ray, and the first of them starts it. Where four processes share two CPUs a sweep that takes a minute
    takes five. A long test that comes last runs alone, with a CPU idle beside it.
    """
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ray"))
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(1800))

    def limit(item: pytest.Item) -> float:
        mark = item.get_closest_marker("timeout")
        return mark.args[0] if mark else 0

    items.sort(key=limit, reverse=True)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Take back what a command that ran in this process has made of Ctrl-C."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    """Take back what a command that ran in this process has made of the package's log: it would hide lines from the tests after it."""
    package = logging.getLogger("robustclip")
    before = list(package.handlers), package.level, package.propagate
    yield
    package.handlers, package.level, package.propagate = before


def settle(visual: torch.nn.Module) -> None:
    """Give batch norms the statistics of normalised noise: with those of a fresh one a deep tower says nearly the same of every image."""
    norms = [part for part in visual.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        visual.train()(torch.randn(32, 3, 32, 32))
        visual.eval()


@pytest.fixture(scope="session")
def _built() -> dict[str, Model]:
    return {}


@pytest.fixture(scope="session")
def make_model(_built: dict[str, Model]) -> Callable[..., Model]:
    """Return a function that gives a tiny random model of its own.

    Its kind is "vit" (16 px), "resnet" (32 px), "siglip" (16 px), or "timm" (32 px): timm's smallest ViT in SigLIP's dress.
    """

    def make(kind: str = "vit", seed: int = 0) -> Model:
        if (name := f"{kind}-{seed}") not in _built:
            config = {
                "model_cfg": copy.deepcopy(KINDS[kind]),
                "preprocess_cfg": STATISTICS | {"size": KINDS[kind]["vision_cfg"]["image_size"]},
            }
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                clip = build(config).eval().requires_grad_(False)
                settle(clip.visual)
            card = {"format": FORMAT, "tokenizer": {"merges": MERGES}}
            _built[name] = Model(f"tiny-{kind}", clip, cut_tokenizer(MERGES, TEXT["context_length"]), config, card)
        return _built[name].copy()

    return make


@pytest.fixture
def tiny_model(make_model: Callable[..., Model]) -> Model:
    """Return a tiny random CLIP: a ViT of 2 blocks on 16 px images."""
    return make_model("vit")


@pytest.fixture
def tiny_classifier(tiny_model: Model) -> ZeroShotClassifier:
    """Return the tiny CLIP as a classifier of four colours."""
    return tiny_model.classifier(NAMES, TEMPLATES)


@pytest.fixture
def tiny_checkpoint(tiny_model: Model, tmp_path: Path) -> str:
    """Return the folder of a checkpoint of the tiny CLIP; each test has its own."""
    save(tiny_model, str(tmp_path / "tiny"))
    return str(tmp_path / "tiny")


@pytest.fixture(scope="session")
def pictures() -> Callable[..., tuple[Tensor, Tensor, list[str]]]:
    """Return a function that draws n noisy pictures of four colours: images [n,3,size,size] in [0,1], labels [n], ids."""

    def draw(n: int = 32, size: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
        g = torch.Generator().manual_seed(seed)
        labels = torch.arange(n) % len(COLOURS)
        colour = torch.tensor(list(COLOURS.values()))[labels][:, :, None, None]
        return (colour + 0.15 * torch.randn(n, 3, size, size, generator=g)).clamp(0, 1), labels, [f"picture/{seed}/{i}" for i in range(n)]

    return draw


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Start Ray on this machine with two CPUs, once, when the first test asks for it."""
    import ray

    start(num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def swept(ray_session: None, make_model: Callable[..., Model], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the tests' one sweep, run once for all tests that look at it: of the smallest recipe on the tiny CLIP."""
    import sweeping

    out = tmp_path_factory.mktemp("swept")
    save(make_model(), str(out / "tiny"))
    config = override(RECIPES["smoke"].config, {"model": str(out / "tiny"), "data.name": "shapes"})
    return sweeping.swept(config, str(out), Tracker(str(out)))


@pytest.fixture
def trained(swept: Any) -> tuple[Job, dict[str, Any]]:
    """Return the job that the tests' sweep trained, on Ray Train, and its result."""
    return prepare(swept.config, swept.out), swept.run
