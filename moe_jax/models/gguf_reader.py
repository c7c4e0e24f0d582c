"""The gguf package's reader, made strict: what a damaged file says is not believed."""

import pathlib
from typing import Any

import numpy as np
from gguf import GGUFReader

from moe_jax.errors import UserError
from moe_jax.models.tensor_files import check_name

# What the reader raises at one damage or another.
_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    MemoryError,
    TypeError,
    RecursionError,
)


class _Whole(GGUFReader):
    """Past the end of a file the package's reader finds nothing, again and again."""

    def _get(
        self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None
    ) -> np.ndarray:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if not 0 <= int(offset) <= end <= len(self.data):
            raise ValueError(f"it has {len(self.data)} bytes, and asks for those up to {end}")
        return super()._get(offset, dtype, count, override_order)


def read_whole(file: pathlib.Path) -> GGUFReader:
    """Opens a GGUF file and checks that its tensors fill it one after the other.

    Raises:
      UserError: they don't, or it is damaged elsewhere; one line.
    """
    try:
        with np.errstate(over="raise"):
            reader = _Whole(file)
    except _ERRORS as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file} is not a whole GGUF file: {text:.200}") from None
    if reader.byte_order != "I":
        raise UserError(f"{file} is a GGUF file of the other byte order, which is not covered")
    place = reader.data_offset
    for tensor in reader.tensors:
        check_name(tensor.name, file)
        if not tensor.n_elements:
            raise UserError(f"{file}: {tensor.name} has no values")
        if tensor.data_offset != place:
            raise UserError(
                f"{file} is not a whole GGUF file: {tensor.name} begins at byte "
                f"{tensor.data_offset}, where the tensors before it end at {place}"
            )
        place += -(-tensor.n_bytes // int(reader.alignment)) * int(reader.alignment)
    return reader
