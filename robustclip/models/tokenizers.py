"""open_clip's own byte-pair tokenizer cut to its first merges, so that a tiny text tower needs no tokenizer file of its own."""

import gzip
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from torch import Tensor

from robustclip.base.errors import UserError

Tokenizer = Callable[[list[str]], Tensor]
BPE_HEADER = '"bpe_simple_vocab_16e6.txt#version: 0.2'
MERGES = 49152 - 256 - 2  # of CLIP's tokenizer, whole
BYTES, ENDS = 512, ("<|startoftext|>", "<|endoftext|>")  # what its words begin with, and the two that they end with
WORDS = BYTES + MERGES + len(ENDS)


@cache
def clip_tokenizer() -> Tokenizer:
    """Return CLIP's own tokenizer, 77 tokens of its whole vocabulary: what reads class names where no model is known yet."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def of_open_clip(architecture: str) -> Tokenizer:
    """Return the tokenizer that open_clip has for an architecture, or for `local-dir:FOLDER`.

    Raises UserError where it is one of transformers (SigLIP's), and the package or the tokenizer's files are not there.
    """
    import open_clip

    try:
        return open_clip.get_tokenizer(architecture)
    except ImportError as error:
        raise UserError(
            f"{architecture} has a tokenizer of the package transformers, which is not here: pip install 'robustclip[hf]'"
        ) from error
    except Exception as error:  # the hub's and transformers' own: its files cannot be had
        raise UserError(f"{architecture}: its tokenizer cannot be had: {' '.join(str(error).split())[:200]}") from error


@cache
def cut_tokenizer(merges: int, context_length: int) -> Tokenizer:
    """Return texts -> token ids [N,context_length] with the first `merges` merges of CLIP's vocabulary (512 bytes + merges + 2 ids)."""
    from open_clip.tokenizer import SimpleTokenizer

    lines = [BPE_HEADER, *first_merges(merges)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "merges.txt.gz"
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
        return SimpleTokenizer(bpe_path=str(path), context_length=context_length)


def words(merges: int) -> int:
    """Return how many words a tokenizer of so many merges has."""
    return BYTES + merges + len(ENDS)


@cache
def first_merges(n: int) -> tuple[str, ...]:
    """Return the first n merges of CLIP's tokenizer, each two pieces with a space between."""
    from open_clip.tokenizer import default_bpe

    return tuple(gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")[1 : n + 1])


def cut_of(merges: Sequence[str]) -> int | None:
    """Return how many merges of CLIP's tokenizer these are, None where they are not its first."""
    return len(merges) if tuple(merges) == first_merges(len(merges)) and len(merges) <= MERGES else None


def vocabulary(merges: int) -> list[str]:
    """Return the words of a tokenizer of so many merges, in the order of their ids, the two ends as transformers writes them."""
    from open_clip.tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    return [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in first_merges(merges)), *ENDS]
