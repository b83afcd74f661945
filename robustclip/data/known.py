"""What is known of a published set, and where a prepared one differs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from robustclip.data.formats.base import Asked


@dataclass(frozen=True)
class KnownSet:
    """A set by its name under <out>/data: `folders` it usually lies in, its `formats`, its `classes` and `images` per split as published.

    `parts`: the files of a download that is several, which lie in no folder of their own. `other_classes`: how many there are in other
    published versions. `whole`: the split that holds all images where the set has no other; `without`: class folders that its protocols
    leave out.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    formats: tuple[str, ...]
    classes: int
    images: dict[str, int]
    url: str
    licence: str
    whole: str | None = None
    without: tuple[str, ...] = ()
    names: tuple[str, ...] | Callable[[], tuple[str, ...]] = field(default=(), compare=False)
    squash: int | None = None
    other_classes: tuple[int, ...] = ()
    parts: tuple[str, ...] = ()

    def asked(self, split: str | None) -> Asked:
        """Return what a reader may know of it."""
        names = self.names() if callable(self.names) else self.names
        return Asked(split, self.whole, self.without, names, self.squash, self.name, self.formats)


def differences(known: KnownSet, classes: int, images: Mapping[str, int]) -> list[str]:
    """Return in words where a prepared set is not as large as the published one; a split that is not known is none."""
    usual = (known.classes, *known.other_classes)
    found = [] if classes in usual else [f"{classes} classes where the published set has {known.classes}"]
    return found + [
        f"{rows} {split} images where the published set has {known.images[split]}"
        for split, rows in images.items()
        if known.images.get(split, rows) != rows
    ]
