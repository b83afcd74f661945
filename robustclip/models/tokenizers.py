"""open_clip's own byte-pair tokenizer cut to its first merges, so that a tiny text tower needs no tokenizer file of its own."""

import gzip
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from torch import Tensor

Tokenizer = Callable[[list[str]], Tensor]


@cache
def clip_tokenizer() -> Tokenizer:
    """Return CLIP's own tokenizer, 77 tokens of its whole vocabulary: what reads class names where no model is known yet."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@cache
def cut_tokenizer(merges: int, context_length: int) -> Tokenizer:
    """Return texts -> token ids [N,context_length] with the first `merges` merges of CLIP's vocabulary (512 bytes + merges + 2 ids)."""
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")[: merges + 1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "merges.txt.gz"
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
        return SimpleTokenizer(bpe_path=str(path), context_length=context_length)
