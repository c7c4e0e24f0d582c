"""Safetensors files made by hand: dtypes and damages that the library's writer doesn't write."""

import json
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

KINDS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "int8": "I8",
    "uint8": "U8",
    "int32": "I32",
    "int64": "I64",
}
E4M3, E5M2, E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu


def header_and_data(tensors: dict[str, np.ndarray]) -> tuple[dict[str, Any], bytes]:
    """What the two parts of a file hold."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, value in tensors.items():
        raw = np.ascontiguousarray(value).tobytes()
        header[name] = {
            "dtype": KINDS[str(value.dtype)],
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    return header, data


def save(
    file: pathlib.Path, header: dict[str, Any] | str, data: bytes, *, length: int | None = None
) -> None:
    """Writes a file of these parts; `length` in place of the header's own."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def save_tensors(tensors: dict[str, np.ndarray], file: pathlib.Path) -> None:
    save(file, *header_and_data(tensors))
