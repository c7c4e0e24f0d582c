"""One shape of the layer benchmark: check everybody, time everybody in turns, count."""

from collections.abc import Callable
from typing import Any, NamedTuple

import checks
import floor
import interleave
import jax
import loads
import moe_kernels
import peers
from tables import progress


class Settings(NamedTuple):
    """What a row depends on besides its shape."""

    peers: tuple[str, ...] = ("dense",)
    load: loads.Load = loads.Load()
    dtype: str = "float32"
    backend: str | None = None
    repeats: int = 7
    seed: int = 0
    force: bool = False


class Found(NamedTuple):
    """The rows of a shape, and why some rivals are not among them."""

    rows: list[dict[str, Any]]  # one for each pass
    reasons: dict[str, str]


def figures(shape: loads.Shape, settings: Settings, ceilings: floor.Ceilings) -> Found:
    """Checks, then times one shape.

    Raises:
      checks.Disagreement: `moe_ffn` or a rival is wrong.
    """
    data = loads.routed(shape, settings.seed, settings.dtype, settings.load)
    rivals: dict[str, dict[str, Callable[[], Any]]] = {what: {} for what in floor.PASSES}
    reasons: dict[str, str] = {}
    # The dense block comes first, then ours, then the others: as in the table.
    for name in settings.peers:
        try:
            with progress(f"{shape.text}: compiling and checking {name}"):
                _add(rivals, name, peers.build(name, shape, data, settings.force))
        except peers.Unavailable as reason:
            reasons[name] = str(reason)
        except jax.errors.JaxRuntimeError as error:
            reasons[name] = str(error).splitlines()[0]
    with progress(f"{shape.text}: compiling and checking moe_ffn"):
        ours, temp = _ours(shape, data, settings.backend)
        _add(rivals, "moe_ffn", ours)
    if "dense" in reasons:
        raise RuntimeError(f"the dense block cannot run: {reasons['dense']}")
    rows = []
    for what in floor.PASSES:
        with progress(f"{shape.text}: timing {what} of {', '.join(rivals[what])}"):
            times = interleave.measure(rivals[what], settings.repeats)
        rows.append(_row(shape, what, settings, times, ceilings) | {"temp_bytes": temp[what]})
    return Found(rows, reasons)


def _add(rivals: dict[str, dict[str, Callable[[], Any]]], name: str, peer: peers.Peer) -> None:
    checks.check(name, peer.both, peer.data)
    dy = peer.to_dy(peer.data["dy"])
    rivals["forward"][name] = peer.forward
    rivals["forward+backward"][name] = lambda: peer.both(dy)


def _ours(
    shape: loads.Shape, data: dict[str, Any], backend: str | None
) -> tuple[peers.Peer, dict[str, int | None]]:
    """`moe_ffn` as a peer, and the compiler's temporary bytes of each pass, where it tells."""
    params = {name: data[name] for name in checks.PARAMETERS}
    args = (data["x"], data["weight"], params, data["expert"])
    forward, both = checks.layer(backend)
    one = forward.lower(*args).compile()
    two = both.lower(*args, data["dy"]).compile()
    temp = {
        what: getattr(program.memory_analysis(), "temp_size_in_bytes", None)
        for what, program in zip(floor.PASSES, (one, two), strict=True)
    }
    return peers.Peer(lambda: one(*args), lambda dy: two(*args, dy), data), temp


def _row(
    shape: loads.Shape,
    what: str,
    settings: Settings,
    times: dict[str, interleave.Times],
    ceilings: floor.Ceilings,
) -> dict[str, Any]:
    """Figures of a pass; every ratio is `moe_ffn`'s time over the other's: below 1 it is faster."""
    ours, plain = times["moe_ffn"], times["dense"]
    least = floor.floor_ms(shape, what, settings.dtype, ceilings)
    work = floor.flops(shape, what)
    size = floor.least_bytes(shape, what, settings.dtype)
    touch = None
    if what != "forward" and ceilings.first_touch is not None:
        touch = 1e3 * floor.gradient_bytes(shape, settings.dtype) / ceilings.first_touch
    return {
        **shape._asdict(),
        "what": what,
        "dtype": settings.dtype,
        "load": settings.load.kind,
        "backend": moe_kernels.resolve_backend(settings.backend, settings.dtype),
        "dense_ms": plain.wall,
        "moe_ffn_ms": ours.wall,
        "ratio": ours.wall / plain.wall,
        "cpu_ratio": ours.cpu / plain.cpu,
        "flops": work,
        "flops_per_s": 1e3 * work / ours.wall,
        "least_bytes": size,
        "floor_ms": least,
        "floor_share": least / ours.wall,
        "first_touch_ms": touch,
        "peers": {
            name: {
                "ms": t.wall,
                "cpu_ms": t.cpu,
                "ratio": ours.wall / t.wall,
                "cpu_ratio": ours.cpu / t.cpu,
            }
            for name, t in times.items()
            if name != "moe_ffn"
        },
    }
