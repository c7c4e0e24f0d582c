"""Problems for the benchmarks: named sets of shapes, loads of the experts, and random data.

A load says how popular the experts are. A token's k experts always differ: they are the k largest
of log(popularity) + Gumbel noise, which draws them one after the other without putting back.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Shape(NamedTuple):
    """Sizes of one mixture-of-experts layer."""

    tokens: int
    d_model: int
    d_expert: int
    experts: int
    k: int

    @property
    def text(self) -> str:
        """T,d,f,E,k."""
        return ",".join(map(str, self))


class Load(NamedTuple):
    """How popular the experts are."""

    kind: str = "dirichlet"
    file: str | None = None  # counts, for kind "olmoe"
    layer: str = "c4:0"  # which of the file's texts and layers


KINDS = ("dirichlet", "uniform", "zipf", "olmoe")

SETS = {
    "cpu": (
        Shape(2048, 512, 1024, 8, 2),
        Shape(2048, 512, 1024, 64, 2),
        Shape(4096, 512, 512, 64, 8),
        Shape(8192, 256, 512, 16, 1),
    ),
    "tiny": (Shape(64, 16, 32, 4, 2),),
    "olmoe": (Shape(4096, 2048, 1024, 64, 8),),
    "mixtral": (Shape(8192, 4096, 14336, 8, 2),),
    "1.4B": tuple(
        Shape(40960, 768, f, e, k) for f, e, k in ((256, 128, 8), (512, 64, 4), (1024, 32, 2))
    ),
    "7B": tuple(
        Shape(24576, 1536, f, e, k) for f, e, k in ((256, 128, 8), (512, 64, 4), (1024, 32, 2))
    ),
    "30B": tuple(
        Shape(32768, 4096, f, e, k) for f, e, k in ((256, 256, 16), (512, 128, 8), (1024, 64, 4))
    ),
    "120B": tuple(
        Shape(32768, 4096, f, e, k) for f, e, k in ((512, 256, 16), (1024, 128, 8), (2048, 64, 4))
    ),
}


def parse(text: str) -> tuple[Shape, ...]:
    """The shapes of "name,name" (of SETS) or "T,d,f,E,k"; parts of either kind are apart by ";".

    Raises:
      ValueError: a part is neither, or its numbers make no layer.
    """
    return tuple(shape for part in text.split(";") for shape in _part(part.strip()))


def _part(text: str) -> tuple[Shape, ...]:
    words = [word.strip() for word in text.split(",")]
    if all(word in SETS for word in words):
        return tuple(shape for word in words for shape in SETS[word])
    try:
        shape = Shape(*map(int, words))
    except (TypeError, ValueError):
        names = ", ".join(SETS)
        raise ValueError(f"shape {text!r} is neither of {names} nor numbers T,d,f,E,k") from None
    if min(shape) < 1 or shape.k > shape.experts:
        raise ValueError(f"shape {text!r} needs sizes of at least 1 and k of at most E")
    return (shape,)


def popularity(load: Load, experts: int, rng: np.random.Generator) -> np.ndarray:
    """Shares of the experts, which add up to 1.

    uniform: all equal. zipf: 1/rank. dirichlet: Dirichlet(3); of 64 experts the busiest gets about
    three times the mean. olmoe: real counts of one layer from a file; where that has another number
    of experts, its sorted cumulative share is interpolated linearly at experts + 1 even points, so
    the same part of the experts does the same part of the work. zipf's and interpolated shares are
    shuffled.

    Raises:
      ValueError: the kind is unknown, or the file is missing or holds no such counts.
    """
    if load.kind == "uniform":
        return np.full(experts, 1 / experts)
    if load.kind == "dirichlet":
        return rng.dirichlet(np.full(experts, 3.0))
    if load.kind == "zipf":
        share = 1 / np.arange(1, experts + 1)
        return rng.permutation(share / share.sum())
    if load.kind != "olmoe":
        raise ValueError(f"load {load.kind!r} is none of {', '.join(KINDS)}")
    counts = counts_of(load)
    share = counts / counts.sum()
    if counts.size == experts:
        return share
    total = np.concatenate([[0.0], np.cumsum(np.sort(share)[::-1])])
    points = np.interp(np.linspace(0, 1, experts + 1), np.linspace(0, 1, total.size), total)
    return rng.permutation(np.diff(points))


def counts_of(load: Load) -> np.ndarray:
    """Choices per expert in one layer of a file {"olmoe": {"counts": {text: [[counts], ...]}}}.

    Raises:
      ValueError: the file is missing or holds no such counts; the message says what it has.
    """
    if load.file is None:
        raise ValueError("load 'olmoe' needs --load_file=PATH, a file of counts per expert")
    try:
        content = Path(load.file).read_text(encoding="utf-8-sig")
        texts = json.loads(content)["olmoe"]["counts"]
    except OSError as error:
        raise ValueError(f"load file {load.file!r} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"load file {load.file!r} is no JSON with olmoe.counts") from None
    name, _, number = load.layer.partition(":")
    if name not in texts or not number.isdecimal() or int(number) >= len(texts[name]):
        have = ", ".join(f"{text}:0..{len(layers) - 1}" for text, layers in texts.items())
        raise ValueError(f"load layer {load.layer!r} is not in the file, which has {have}")
    counts = np.asarray(texts[name][int(number)], np.float64)
    if counts.ndim != 1 or counts.min(initial=0) < 0 or not counts.sum() > 0:
        raise ValueError(f"load layer {load.layer!r} holds no list of counts")
    return np.maximum(counts, 1e-9)


def choices(shape: Shape, load: Load, seed: int) -> np.ndarray:
    """Expert ids [tokens, k], int32.

    Popularities are the odds of a token's first choice; as its choices differ, the loads come out
    somewhat more even than them where k is large.
    """
    rng = np.random.default_rng(seed)
    score = rng.gumbel(size=(shape.tokens, shape.experts))
    score += np.log(popularity(load, shape.experts, rng))
    return np.argsort(-score, axis=1)[:, : shape.k].astype(np.int32)


def routed(shape: Shape, seed: int, dtype: Any, load: Load | None = None) -> dict[str, Any]:
    """Arguments of `moe_ffn` with a gate, and dy, made on the default device.

    x and dy are normal, parameters normal / sqrt(width of their input), weights uniform in 0..1.
    """
    t, d, f, e, k = shape
    keys = iter(jax.random.split(jax.random.key(seed), 6))

    def normal(*size: int, scale: float = 1.0) -> Any:
        return _normal(next(keys), size, jnp.dtype(dtype).name, scale)

    return {
        "x": normal(t, d),
        "expert": jnp.asarray(choices(shape, load or Load(), seed)),
        "weight": jax.random.uniform(next(keys), (t, k), jnp.float32),
        "w_in": normal(e, d, f, scale=d**-0.5),
        "w_out": normal(e, f, d, scale=f**-0.5),
        "w_gate": normal(e, d, f, scale=d**-0.5),
        "dy": normal(t, d),
    }


def _normal_in_one_pass(key: Any, size: tuple[int, ...], dtype: str, scale: float) -> Any:
    return jax.random.normal(key, size, dtype) * jnp.asarray(scale, dtype)


_normal = jax.jit(_normal_in_one_pass, static_argnums=(1, 2, 3))
