"""What the devices send one another in a program.

Read from its jaxpr, before any compiler and for devices that need not exist: the step is fully
manual (`jax.shard_map`), so what stands there is all there is. The compiler may join several
messages into one or drop one that nobody reads, but adds none: `compiled_bytes` reads what it made.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jax.extend import core

KINDS = {
    "psum": "all_reduce",
    "psum_invariant": "all_reduce",
    "pmax": "all_reduce",
    "pmin": "all_reduce",
    "all_gather": "all_gather",
    "all_gather_invariant": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "all_to_all": "all_to_all",
    "ragged_all_to_all": "ragged_all_to_all",
    "ppermute": "permute",
}
"""JAX's primitives -> the collectives of XLA that they become."""

_TRANSFORMATIONS = ("jvp", "transpose", "vmap", "remat", "checkpoint", "rematted_computation")


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
      kind: a value of KINDS.
      axes: of the mesh, over which it goes.
      devices: n, how many take part.
      scope: where it stands: the innermost `jax.named_scope`, "" if none.
      backward: does it belong to a derivative?
      times: how often a step does it; in a loop whose length depends on the data, each round.
      in_loop: is there such a loop?
      operand: B, bytes that a device puts in.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    scope: str
    backward: bool
    times: int
    in_loop: bool
    operand: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends each time, by the algorithm that sends the fewest.

        all_reduce 2 B (n-1)/n; all_gather B (n-1); reduce_scatter and all_to_all B (n-1)/n (the
        ragged one at most this); permute B.
        """
        n, size = self.devices, self.operand
        others = (n - 1) / n
        factor = {"all_reduce": 2 * others, "all_gather": n - 1, "permute": 1}
        return float(size * factor.get(self.kind, others))


def collectives(jaxpr: core.ClosedJaxpr, sizes: Mapping[str, int]) -> list[Collective]:
    """The collectives of a program in order, those of a single device left out.

    Args:
      jaxpr: as `jax.make_jaxpr` gives it; the program need not fit any device here.
      sizes: of the mesh's axes.
    """
    where = _Place("", 1, False)
    return [c for c in _walk(jaxpr.jaxpr, sizes, where) if c.devices > 1]


def total_sent(found: list[Collective]) -> float:
    """Bytes that a device sends in a step, loops that depend on the data left out."""
    return sum((c.sent * c.times for c in found if not c.in_loop), 0.0)


def compiled_bytes(text: str) -> dict[str, int]:
    """Bytes that a device puts into each kind of collective in a compiled program.

    Args:
      text: of XLA, as `compiled.as_text()` gives it. Bodies of loops count once.
    """
    sums: dict[str, int] = {}
    for line in text.splitlines():
        found = _XLA.search(line)
        if found is None:
            continue
        size = sum(_xla_bytes(dtype, dims) for dtype, dims in _XLA_ARRAY.findall(found["result"]))
        kind = found["kind"].replace("-", "_")
        if kind == "all_gather":
            size //= _group_size(line)
        elif kind == "reduce_scatter":
            size *= _group_size(line)
        sums[kind] = sums.get(kind, 0) + size
    return sums


_XLA = re.compile(
    r"= (?P<result>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all)(-start)?\("
)
_XLA_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")


def _xla_bytes(dtype: str, dims: str) -> int:
    bits = int("".join(c for c in dtype if c.isdecimal()) or 8)  # pred: a byte
    return math.prod(int(d) for d in dims.split(",") if d) * bits // 8


def _group_size(line: str) -> int:
    """Devices of one group: {{0,1},{2,3}}, [2,2]<=[4], or mesh['a'=2,'b'=2] {'b'}."""
    short = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    if short:
        return int(short[1])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", named[2]))
    long = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if long is None:
        raise ValueError(f"no replica_groups in {line.strip()[:200]}")
    return len(long[1].split(","))


class _Place(NamedTuple):
    """Where an inner program stands: name stack, how often it runs, inside a while loop?"""

    stack: str
    times: int
    in_loop: bool


def _walk(jaxpr: core.Jaxpr, sizes: Mapping[str, int], where: _Place) -> Iterator[Collective]:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        stack = f"{where.stack}/{equation.source_info.name_stack}"
        if name in KINDS:
            yield _collective(equation, sizes, where._replace(stack=stack))
            continue
        length = equation.params["length"] if name == "scan" else 1
        inside = _Place(stack, where.times * length, where.in_loop or name == "while")
        for inner in _inside(equation.params):
            yield from _walk(inner, sizes, inside)


def _inside(params: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
    """The programs inside an operation: bodies of loops, branches, called functions."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _collective(equation: core.JaxprEqn, sizes: Mapping[str, int], where: _Place) -> Collective:
    params = equation.params
    given = params["axes"] if "axes" in params else params["axis_name"]
    axes = (given,) if isinstance(given, str) else tuple(a for a in given if isinstance(a, str))
    # The first operand of a ragged all-to-all is the data; the others say where it goes.
    ragged = equation.primitive.name == "ragged_all_to_all"
    operands = equation.invars[:1] if ragged else equation.invars
    names = [n for n in re.findall(r"\w+", where.stack) if n not in _TRANSFORMATIONS]
    return Collective(
        kind=KINDS[equation.primitive.name],
        axes=axes,
        devices=math.prod(sizes[a] for a in axes),
        scope=names[-1] if names else "",
        backward="transpose(" in where.stack,
        times=where.times,
        in_loop=where.in_loop,
        operand=sum(_nbytes(v.aval) for v in operands),
    )


def _nbytes(aval: Any) -> int:
    return aval.size * aval.dtype.itemsize
