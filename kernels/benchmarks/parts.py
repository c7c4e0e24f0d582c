"""Times each single operation alone, and says how much of the layer is routing.

  python kernels/benchmarks/parts.py --shapes=cpu --repeats=5
  python kernels/benchmarks/parts.py --shapes="4096,512,512,64,8" --load=zipf --json_out=parts.json

Every operation gets the rows that the layer would give it. Products are rated by arithmetic, the
others by the bytes they must at least read and write. grouped_gemm is given twice: up (d to f) and
down (f to d). At the foot, routing is everything but the products: one less the time of two
products up and one down, run alone, over the layer's. It can come out below zero where the layer
fuses its products better than they run alone.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import checks
import floor
import interleave
import jax
import jax.numpy as jnp
import loads
import moe_kernels
import options
import tables
from absl import app, flags
from moe_kernels import backends

flags.adopt_module_key_flags(options)

COLUMNS = ["T,d,f,E,k", "operation", "what", "ms", "cpu_ms", "rate", "unit"]


class Part(NamedTuple):
    """One operation: a function of the arrays in `args`, all of them differentiable, and its work.

    FLOPs and bytes are those of the forward pass; None where its worth is not counted so.
    """

    call: Callable[..., Any]
    args: tuple[Any, ...]
    flops: float | None
    bytes: float | None
    differentiable: bool = True


def parts(shape: loads.Shape, data: dict[str, Any], backend: str | None) -> dict[str, Part]:
    """All operations on the data of one layer, by name."""
    t, d, f, e, k = shape
    rows, size = t * k, data["x"].dtype.itemsize
    x, weight, expert = data["x"], data["weight"], data["expert"]
    plan = jax.jit(moe_kernels.make_plan, static_argnums=1)(expert, e)
    sorted_x = x[plan.token]
    h = jax.random.normal(jax.random.key(1), (rows, f), x.dtype)
    logits = jax.random.normal(jax.random.key(2), (t, e), jnp.float32)
    product = 2.0 * rows * d * f

    def gather(x: Any, w: Any) -> Any:
        return moe_kernels.gather_gemm(x, w, plan, backend=backend)

    def grouped(x: Any, w: Any) -> Any:
        return moe_kernels.grouped_gemm(x, w, plan.offset, backend=backend)

    def combine(y: Any, weight: Any) -> Any:
        return moe_kernels.combine(y, weight, plan, backend=backend)

    def pool(x: Any, weight: Any) -> Any:
        return moe_kernels.segment_pool(x, weight, plan, backend=backend)

    def route(logits: Any) -> Any:
        return moe_kernels.topk_route(logits, k, backend=backend)[1]

    def plan_of(expert: Any) -> Any:
        return backends.run(backend, "make_plan", {"expert_tk": expert}, num_experts=e)

    moved = (rows + t) * d * size + 8.0 * rows
    return {
        "make_plan": Part(plan_of, (expert,), None, 4.0 * (4 * rows + e + 1), False),
        "gather_gemm": Part(gather, (x, data["w_in"]), product, None),
        "grouped_gemm_up": Part(grouped, (sorted_x, data["w_in"]), product, None),
        "grouped_gemm_down": Part(grouped, (h, data["w_out"]), product, None),
        "combine": Part(combine, (sorted_x, weight), None, moved),
        "segment_pool": Part(pool, (x, weight), None, (rows + e) * d * size + 8.0 * rows),
        "topk_route": Part(route, (logits,), None, 4.0 * t * e + 8.0 * rows),
    }


def callables(part: Part) -> dict[str, Callable[[], Any]]:
    """The passes of a part, jitted; dy is random and of the output's shape."""
    one = jax.jit(part.call)
    found: dict[str, Callable[[], Any]] = {"forward": lambda: one(*part.args)}
    if part.differentiable:
        out = jax.eval_shape(part.call, *part.args)
        dy = jax.random.normal(jax.random.key(3), out.shape, out.dtype)

        def both(dy: Any, *args: Any) -> Any:
            y, pull = jax.vjp(part.call, *args)
            return y, pull(dy)

        two = jax.jit(both)
        found["forward+backward"] = lambda: two(dy, *part.args)
    return found


def figures(shape: loads.Shape, load: loads.Load) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of one shape, and the share of routing for each pass."""
    backend, dtype = options.BACKEND.value, options.DTYPE.value
    data = loads.routed(shape, options.SEED.value, dtype, load)
    params = {name: data[name] for name in checks.PARAMETERS}
    forward, both = checks.layer(backend)
    args = (data["x"], data["weight"], params, data["expert"])
    found, share = [], {}
    work = parts(shape, data, backend)
    passes = {name: callables(part) for name, part in work.items()}
    passes["layer"] = {
        "forward": lambda: forward(*args),
        "forward+backward": lambda: both(*args, data["dy"]),
    }
    with tables.progress(f"{shape.text}: compiling and checking moe_ffn"):
        checks.check("moe_ffn", lambda dy: both(*args, dy), data)
    for what in floor.PASSES:
        calls = {name: own[what] for name, own in passes.items() if what in own}
        with tables.progress(f"{shape.text}: compiling and timing {what}"):
            times = interleave.measure(calls, options.REPEATS.value)
        for name, time in times.items():
            rate = _rate(shape, what, work.get(name), time.wall)
            about = {**shape._asdict(), "operation": name, "what": what, "dtype": dtype}
            found.append(about | {"ms": time.wall, "cpu_ms": time.cpu} | rate)
        products = 2 * times["grouped_gemm_up"].wall + times["grouped_gemm_down"].wall
        share[what] = 1 - products / times["layer"].wall
    return found, share


def _rate(shape: loads.Shape, what: str, part: Part | None, ms: float) -> dict[str, Any]:
    """GFLOP/s of products (backward counts double), GB/s of the rest's forward pass, or nothing."""
    if part is None:
        return {"rate": floor.flops(shape, what) / ms / 1e6, "unit": "GFLOP/s"}
    if part.flops is not None:
        times = 1 if what == "forward" else 3
        return {"rate": times * part.flops / ms / 1e6, "unit": "GFLOP/s"}
    if what == "forward" and part.bytes is not None:
        return {"rate": part.bytes / ms / 1e6, "unit": "GB/s"}
    return {"rate": None, "unit": None}


def main(argv: list[str]) -> None:
    """Prints the table, and writes it where --json_out says."""
    tables.no_arguments(argv)
    shapes, load = options.shapes_and_load()
    about = interleave.machine()
    print(" ".join(f"{name}={value}" for name, value in about.items()))
    table = tables.Table(COLUMNS, {"T,d,f,E,k": 22, "operation": 18, "what": 16})
    everything, shares = [], {}
    for shape in shapes:
        try:
            found, shares[shape.text] = figures(shape, load)
        except checks.Disagreement as error:
            tables.fail(error)
        everything += found
        for row in found:
            rate = "-" if row["rate"] is None else f"{row['rate']:.1f}"
            table.add(
                [shape.text, row["operation"], row["what"], f"{row['ms']:.3f}"]
                + [f"{row['cpu_ms']:.3f}", rate, row["unit"] or "-"]
            )
    table.close()
    for text, share in shares.items():
        words = ", ".join(f"{100 * part:.0f}% of {what}" for what, part in share.items())
        print(f"routing (all but the products) at {text}: {words}")
    if options.JSON_OUT.value:
        found = {"machine": about, "figures": everything, "routing_share": shares}
        Path(options.JSON_OUT.value).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    app.run(main)
