"""A pickle of plain containers and numbers, for sets that are published in no other form; anything else in it is refused."""

import pickle
from typing import IO, Any

from robustclip.base.errors import UserError

# What a pickle of arrays names: numpy's own makers of arrays and kinds of numbers, and the codec by which Python 3 reads bytes of Python 2.
ALLOWED = {
    *((module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    *((module, "scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    *((("numpy", "ndarray"), ("numpy", "dtype"))),
    ("_codecs", "encode"),
}


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it would run {module}.{name}")
        if module.startswith("numpy.core"):
            module = module.replace("numpy.core", "numpy._core")
        return super().find_class(module, name)


def unpickled(where: str, stream: IO[bytes]) -> Any:
    """Return what a pickle holds, strings of Python 2 as bytes; one that names anything but arrays, or is damaged, is a UserError."""
    try:
        with stream:
            return _Plain(stream, encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise UserError(f"{where}: this pickle is damaged or not to be trusted ({error}); fetch it again from its authors") from error
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise UserError(f"{where}: this pickle is damaged ({error}); fetch it again") from error
