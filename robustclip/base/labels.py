"""What tables call models: a name that several have is told apart by what they are."""

from collections.abc import Iterable


def told_apart(models: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return (name, sha256) -> the name, with the first digits of the hash where models of other hashes have it too."""
    pairs = set(models)
    names = [name for name, _ in pairs]
    return {(name, sha256): f"{name}@{sha256[:8]}" if names.count(name) > 1 else name for name, sha256 in pairs}
