"""Prompt templates as published: one per set (TeCoA, CoOp) and the ensembles of CLIP_benchmark that FARE scores with."""

TECOA = "This is a photo of a {}"
A_PHOTO = "a photo of a {}."  # CoOp's, and what TAPT's prompted trainers use for every set

# TeCoA (Mao et al. 2023, published code): the sets that have a prompt of their own; all others use TECOA.
TECOA_OWN = {
    "stanfordcars": "A photo of a {}.",
    "food101": "A photo of {}, a type of food.",
    "oxfordpets": "A photo of a {}, a type of pet.",
    "flowers102": "A photo of a {}, a type of flower.",
    "dtd": "A surface with a {} texture.",
    "eurosat": "A centered satellite photo of {}.",
    "fgvcaircraft": "A photo of a {}, a type of aircraft.",
    "pcam": "This is a photo of {}.",
    "caltech256": "A photo of a {}.",
    "country211": "A photo I took in {}.",
}

# The 80 templates of Radford et al. 2021 for ImageNet, in the order of open_clip.OPENAI_IMAGENET_TEMPLATES.
IMAGENET_80 = tuple(
    """
a bad photo of a {}. | a photo of many {}. | a sculpture of a {}. | a photo of the hard to see {}. | a low resolution photo of the {}.
| a rendering of a {}. | graffiti of a {}. | a bad photo of the {}. | a cropped photo of the {}. | a tattoo of a {}. | the embroidered
{}. | a photo of a hard to see {}. | a bright photo of a {}. | a photo of a clean {}. | a photo of a dirty {}. | a dark photo of the
{}. | a drawing of a {}. | a photo of my {}. | the plastic {}. | a photo of the cool {}. | a close-up photo of a {}. | a black and
white photo of the {}. | a painting of the {}. | a painting of a {}. | a pixelated photo of the {}. | a sculpture of the {}. | a
bright photo of the {}. | a cropped photo of a {}. | a plastic {}. | a photo of the dirty {}. | a jpeg corrupted photo of a {}. | a
blurry photo of the {}. | a photo of the {}. | a good photo of the {}. | a rendering of the {}. | a {} in a video game. | a photo of
one {}. | a doodle of a {}. | a close-up photo of the {}. | a photo of a {}. | the origami {}. | the {} in a video game. | a sketch of
a {}. | a doodle of the {}. | a origami {}. | a low resolution photo of a {}. | the toy {}. | a rendition of the {}. | a photo of the
clean {}. | a photo of a large {}. | a rendition of a {}. | a photo of a nice {}. | a photo of a weird {}. | a blurry photo of a {}. |
a cartoon {}. | art of a {}. | a sketch of the {}. | a embroidered {}. | a pixelated photo of a {}. | itap of the {}. | a jpeg
corrupted photo of the {}. | a good photo of a {}. | a plushie {}. | a photo of the nice {}. | a photo of the small {}. | a photo of
the weird {}. | the cartoon {}. | art of the {}. | a drawing of the {}. | a photo of the large {}. | a black and white photo of a {}.
| the plushie {}. | a dark photo of a {}. | itap of a {}. | graffiti of the {}. | a toy {}. | itap of my {}. | a photo of a cool {}. |
a photo of a small {}. | a tattoo of the {}.
""".replace("\n", " ")
    .strip()
    .split(" | ")
)

_QUALITIES = ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")
_CIFAR = (
    *(f"a {quality}photo of {article} {{}}." for article in ("a", "the") for quality in _QUALITIES),
    *(f"a photo of {article} {size} {{}}." for article in ("a", "the") for size in ("small", "big")),
)
_PICTURES = ("photo", "painting", "sculpture", "sketch", "tattoo", "rendition", "drawing", "doodle")
_MATERIALS = ("plastic", "toy", "embroidered", "cartoon", "plushie", "origami")

# CLIP_benchmark's ensembles, one embedding per class (Schlarmann et al. 2024, FARE-13).
FARE = {
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "stl10": ("a photo of a {}.", "a photo of the {}."),
    "stanfordcars": (
        "a photo of a {}.",
        "a photo of the {}.",
        "a photo of my {}.",
        "i love my {}!",
        *(f"a photo of my {state} {{}}." for state in ("dirty", "clean", "new", "old")),
    ),
    "caltech101": tuple(
        template
        for article in ("a", "the")
        for template in (
            *(f"a {picture} of {article} {{}}." for picture in _PICTURES),
            *(f"{picture} of {article} {{}}." for picture in ("art", "graffiti")),
            *(f"{article} {material} {{}}." for material in _MATERIALS),
            f"{article} {{}} in a video game.",
        )
    ),
    "oxfordpets": ("a photo of a {}, a type of pet.",),
    "flowers102": ("a photo of a {}, a type of flower.",),
    "dtd": tuple(f"a photo of {article} {{}} {noun}." for article in ("a", "the") for noun in ("texture", "pattern", "thing", "object")),
    "eurosat": ("a centered satellite photo of {}.", "a centered satellite photo of a {}.", "a centered satellite photo of the {}."),
    "fgvcaircraft": ("a photo of a {}, a type of aircraft.", "a photo of the {}, a type of aircraft."),
    "pcam": ("a histopathology slide showing {}", "histopathology image of {}"),
    "imagenet": IMAGENET_80,
    "imagenet-r": IMAGENET_80,
    "imagenet-sketch": IMAGENET_80,
}
