"""How a config.json describes rotary positions, in the words of transformers 4 and 5."""

import dataclasses
from typing import Any

from moe_jax.models.causal_config import RopeConfig
from moe_jax.models.config_fields import Fields

_NEW, _OLD = "rope_parameters", "rope_scaling"
_KINDS = ("default", "linear", "llama3")


def read_rope(fields: Fields, *, theta: float, max_length: int) -> RopeConfig:
    """Reads `rope_parameters`, or `rope_theta` and `rope_scaling` of before transformers 5.

    A file may have all of them where they say the same. (transformers 5 takes rope_scaling where
    both objects are there, and an object's own rope_theta before that beside it; transformers 4
    took `type` before `rope_type`. What they would drop is refused here.)

    Args:
      fields: of the config.json.
      theta: where none is given; the default of the family's class.
      max_length: of the model, the default of llama3's original_max_position_embeddings.

    Raises:
      UserError: a kind isn't covered, a value is wrong, or two descriptions differ.
    """
    _check_whole(fields)
    empty = Fields({}, fields.where, inside=f"{_NEW}.")
    objects = {name: fields.inner(name) for name in (_OLD, _NEW)}
    given = [inner for inner in objects.values() if inner is not None] or [empty]
    read = [_read(inner, fields, theta, max_length) for inner in given]
    if len(read) == 2 and _plain(read[0]) != _plain(read[1]):
        raise fields.differ(_OLD, fields.raw[_OLD], _NEW, fields.raw[_NEW])
    return read[-1]


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """The `rope_parameters` that say it."""
    raw: dict[str, Any] = {"rope_theta": rope.theta, "rope_type": "default"}
    if rope.scaling != "none":
        raw |= {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "llama3":
        raw |= {
            "low_freq_factor": rope.low_factor,
            "high_freq_factor": rope.high_factor,
            "original_max_position_embeddings": rope.original_length,
        }
    return raw


def _read(inner: Fields, outer: Fields, theta: float, max_length: int) -> RopeConfig:
    """What one object says, with what stands beside it."""
    for name, value in inner.raw.items():
        if isinstance(value, dict):
            raise inner.wrong((name,), "is not covered: all layers must have the same positions")
    _check_whole(inner)
    theta = _beside(inner, outer, "rope_theta", theta)
    kind = inner.text("rope_type", "type", default="default")
    if kind not in _KINDS:
        name = "rope_type" if "rope_type" in inner.raw else "type"
        raise inner.wrong((name,), f"is not covered, only {', '.join(_KINDS)}")
    if kind == "default":
        if (inner.number_or_none("factor") or 1.0) != 1.0:
            raise inner.wrong(("factor",), "needs a rope_type that has a factor, such as 'linear'")
        return RopeConfig(theta=theta)
    factor = inner.number("factor")
    if kind == "linear":
        return RopeConfig(theta=theta, scaling="linear", factor=factor)
    low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
    if low >= high:
        raise inner.wrong(("low_freq_factor",), f"must be less than high_freq_factor={high}")
    return RopeConfig(
        theta=theta,
        scaling="llama3",
        factor=factor,
        low_factor=low,
        high_factor=high,
        original_length=_original_length(inner, outer, max_length),
    )


def _beside(inner: Fields, outer: Fields, name: str, default: float) -> float:
    """A number that may stand in the object, or beside it, or in both."""
    both = (inner, outer)
    said = [fields for fields in both if fields.has(name)]  # null beside a number says nothing
    found = [fields.number(name) for fields in said or both if name in fields.raw]
    if len(set(found)) == 2:
        raise outer.differ(inner.path(name), found[0], name, found[1])
    return found[0] if found else default


def _original_length(inner: Fields, outer: Fields, default: int) -> int:
    name = "original_max_position_embeddings"
    found = [fields.whole(name) for fields in (inner, outer) if fields.has(name)]
    if len(set(found)) == 2:
        raise outer.differ(inner.path(name), found[0], name, found[1])
    return found[0] if found else default


def _check_whole(fields: Fields) -> None:
    """Refuses heads of which only a part is rotated."""
    if (fields.number_or_none("partial_rotary_factor") or 1.0) != 1.0:
        raise fields.wrong(("partial_rotary_factor",), "is not covered, only 1")


def _plain(rope: RopeConfig) -> RopeConfig:
    """One way to say that nothing is stretched."""
    alike = rope.scaling == "linear" and rope.factor == 1.0
    return dataclasses.replace(rope, scaling="none") if alike else rope
