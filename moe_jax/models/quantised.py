"""Quantised safetensors: float8 with scales becomes numbers, everything else is refused."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_jax.errors import UserError
from moe_jax.models.tensor_files import FLOATS, INSTEAD, FileTensors, Index

_FIELDS = ("quantization_config", "compression_config", "quantization")
_FLOAT8, _SCALE = ("F8_E4M3", "F8_E5M2"), "_scale_inv"
# Ends of the names that go with a quantised weight: bitsandbytes, GPTQ, AWQ, compressed-tensors,
# modelopt, torchao, MLX, MXFP4 and float8 of several makes.
_PARTS = re.compile(
    r"(\.(q?weight|[a-z_]*proj|input|output|[kqv]|activation)_(global_)?scales?(_inv|_2)?"
    r"|_scale_inv|_activation_scale|[._]scales|\.biases|\.qweight|\.qzeros|\.g_idx|[._]packed"
    r"|_zero_point|_qdata|_blocks|\.weight_shape|\.SCB|\.weight_format|absmax|quant_map"
    r"|\.quant_state\..*)$"
)


def dequantised(found: FileTensors, raw: Mapping[str, Any], where: str) -> FileTensors:
    """A folder's tensors as numbers: float8 times its scales, and all others as they are.

    Covered is quant_method="fp8" of config.json as DeepSeek and Qwen publish it: weights in float8
    and NAME_scale_inv, one factor for each block of weight_block_size or one for the whole. The
    scales of activations are left out, as activations aren't quantised here. Float8 without a word
    of scales anywhere was cast only.

    Args:
      found: what the files hold.
      raw: the contents of config.json.
      where: the folder, for messages.

    Raises:
      UserError: the weights are quantised in another way, lack their scales, or aren't quantised
        although config.json says so.
    """
    field, how = _method(raw, where)
    if not how:
        parts = [name for name in found.shapes if _PARTS.search(name)]
        if parts:
            raise UserError(_refusal(where, f"its config.json doesn't say how ({parts[0]})"))
        return found
    method, example = how.get("quant_method"), _example(found)
    if example is None:
        raise UserError(
            f"{where}: config.json has {field} with quant_method={method!r:.60}, but no tensor is "
            f"quantised; delete {field} from it if that is right"
        )
    if method != "fp8":
        raise UserError(_refusal(where, f"quant_method={method!r:.60} ({example})"))
    scaled = _scaled(found, _block(how, where), where)
    left = [name for name in found.shapes if not _PARTS.search(name)]

    def read(name: str, index: Index = ()) -> np.ndarray:
        value = found.read(name, index)
        if name not in scaled:
            return value
        return value.astype(np.float32) * _spread(found, name, scaled[name], index)

    return FileTensors(
        {name: found.shapes[name] for name in left},
        {name: found.kinds[name] for name in left},
        read,
    )


def _refusal(where: str, what: str) -> str:
    return f"{where}: the weights are quantised, {what}, which is not covered: {INSTEAD}"


def _example(found: FileTensors) -> str | None:
    """One of the quantised tensors, if there's any."""
    for name, kind in found.kinds.items():
        whole = kind not in FLOATS and name.endswith("weight")
        if _PARTS.search(name) or whole or kind in _FLOAT8:
            return f"{name} of dtype {kind}"
    return None


def _method(raw: Mapping[str, Any], where: str) -> tuple[str, Mapping[str, Any]]:
    """What config.json says of quantisation, and in which of its fields."""
    for field in _FIELDS:
        how = raw.get(field)
        if how is None or how == {}:
            continue
        if not isinstance(how, dict):
            raise UserError(f"{where}: config.json's {field}={how!r:.60} must be an object")
        return field, how
    return "", {}


def _block(how: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    """Rows and columns that share a factor; None: the whole matrix does."""
    size = how.get("weight_block_size")
    if size is None:
        return None
    whole = isinstance(size, list) and all(type(n) is int and n > 0 for n in size)
    if not whole or len(size) != 2:
        raise UserError(
            f"{where}: weight_block_size={size!r:.60} must be two numbers of at least 1"
        )
    return size[0], size[1]


def _scaled(
    found: FileTensors, block: tuple[int, int] | None, where: str
) -> dict[str, tuple[int, int]]:
    """The weights that have scales, each with the size of its blocks."""
    _check_parts(found, where)
    scaled = {}
    for name, kind in found.kinds.items():
        shape, scale = found.shapes[name], found.shapes.get(f"{name}{_SCALE}")
        if scale is None and kind in _FLOAT8:
            raise UserError(f"{where}: {name} is of dtype {kind} and has no {name}{_SCALE}")
        if scale is None:
            continue
        if kind not in _FLOAT8:
            raise UserError(f"{where}: {name} has scales and is of dtype {kind}, not float8")
        if len(shape) < 2:
            raise UserError(f"{where}: {name} has shape {shape}; only matrices have scales")
        size = block or (max(shape[-2], 1), max(shape[-1], 1))
        grid = (*shape[:-2], -(-shape[-2] // size[0]), -(-shape[-1] // size[1]))
        alone = block is None and len(shape) == 2 and scale in ((), (1,))
        if scale != grid and not alone:
            raise UserError(
                f"{where}: {name}{_SCALE} has shape {scale}, the weight's {shape} asks for {grid}"
            )
        scaled[name] = size
    return scaled


def _check_parts(found: FileTensors, where: str) -> None:
    """Refuses names that are no scales of float8, and scales without their weight."""
    for name in found.shapes:
        if not _PARTS.search(name) or name.endswith("activation_scale"):
            continue
        if not name.endswith(_SCALE):
            raise UserError(_refusal(where, f"quant_method='fp8' with {name}"))
        if name.removesuffix(_SCALE) not in found.shapes:
            raise UserError(f"{where} has {name}, but no {name.removesuffix(_SCALE)}")


def _spread(found: FileTensors, name: str, size: tuple[int, int], index: Index) -> np.ndarray:
    """The factor of each value of a weight's part, which has whole rows."""
    shape = found.shapes[name]
    lead = len(shape) - 2
    assert len(index) < len(shape)
    grid = (*shape[:-2], -(-shape[-2] // size[0]), -(-shape[-1] // size[1]))
    scale = found.read(f"{name}{_SCALE}").reshape(grid)[index[:lead]].astype(np.float32)
    rows = np.repeat(scale, size[0], axis=-2)[..., : shape[-2], :]
    rows = rows[(..., *index[lead:], slice(None))]
    return np.repeat(rows, size[1], axis=-1)[..., : shape[-1]]
