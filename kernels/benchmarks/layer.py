"""Times one mixture-of-experts layer against a dense one of the same activated FLOPs.

  python kernels/benchmarks/layer.py --shapes=cpu --repeats=7 --json_out=layer.json

"dense" sends tokens * k rows through one gated feed-forward block: plain matrix products. Before
timing, the values and all gradients of the compiled functions are compared with the reference
backend on a sample of the tokens. Ratios compare medians of interleaved runs; cpu is the ratio of
processor times, which a busy machine disturbs less.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import interleave
import jax
import jax.numpy as jnp
import loads
import moe_kernels
import numpy as np
from absl import app, flags

SHAPES = flags.DEFINE_string("shapes", "cpu", "a set (cpu, tiny) or T,d,f,E,k;T,d,f,E,k;...")
REPEATS = flags.DEFINE_integer("repeats", 7, "timed rounds; medians are reported", lower_bound=1)
BACKEND = flags.DEFINE_string("backend", None, "moe_ffn's backend; None picks by platform")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16", "float16"], "of x and weights"
)
SEED = flags.DEFINE_integer("seed", 0, "seed of the data")
JSON_OUT = flags.DEFINE_string("json_out", None, "file to write the figures to")

SAMPLE = 64
TOLERANCE = {"float32": 1e-4, "bfloat16": 4e-2, "float16": 1e-2}
PARAMETERS = ("w_in", "w_out", "w_gate")


def moe(backend: str | None) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward, and forward with all gradients, of `moe_ffn`."""

    def forward(x: Any, weight: Any, params: Any, expert: Any) -> Any:
        return moe_kernels.moe_ffn(x, expert, weight, **params, backend=backend)

    def both(x: Any, weight: Any, params: Any, expert: Any, dy: Any) -> Any:
        y, pull = jax.vjp(lambda *args: forward(*args, expert), x, weight, params)
        return y, pull(dy)

    return jax.jit(forward), jax.jit(both)


def dense() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward, and forward with all gradients, of one gated block."""

    def forward(x: Any, params: Any) -> Any:
        return (jax.nn.silu(x @ params["w_gate"]) * (x @ params["w_in"])) @ params["w_out"]

    def both(x: Any, params: Any, dy: Any) -> Any:
        y, pull = jax.vjp(forward, x, params)
        return y, pull(dy)

    return jax.jit(forward), jax.jit(both)


def check(both: Callable[..., Any], data: dict[str, Any], params: Any, dtype: str) -> None:
    """Compares the compiled function with the reference on a sample of tokens.

    With dy zero elsewhere, the gradients of the parameters come from the sample alone.

    Raises:
      AssertionError: a value or a gradient is off by more than the dtype explains.
    """
    x, expert, weight = data["x"], data["expert"], data["weight"]
    chosen = np.random.default_rng(1).permutation(x.shape[0])[:SAMPLE]
    dy = jnp.zeros_like(data["dy"]).at[chosen].set(data["dy"][chosen])
    y, (dx, dweight, dparams) = both(x, weight, params, expert, dy)
    reference = moe("reference")[1]
    few = [a[chosen] for a in (x, weight, expert, dy)]
    want = reference(few[0], few[1], params, few[2], few[3])
    got = y[chosen], (dx[chosen], dweight[chosen], dparams)
    for ours, right in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        ours, right = np.asarray(ours, np.float32), np.asarray(right, np.float32)
        scale = float(np.max(np.abs(right)))
        np.testing.assert_allclose(ours, right, rtol=0, atol=TOLERANCE[dtype] * scale)


def figures(shape: loads.Shape) -> list[dict[str, Any]]:
    """Checks, then times one shape."""
    data = loads.routed(shape, SEED.value, DTYPE.value)
    params = {name: data[name] for name in PARAMETERS}
    moe_forward, moe_both = moe(BACKEND.value)
    check(moe_both, data, params, DTYPE.value)

    one = {name: a[0] for name, a in params.items()}
    rows, drows = jnp.tile(data["x"], (shape.k, 1)), jnp.tile(data["dy"], (shape.k, 1))
    dense_forward, dense_both = dense()
    tokens = data["x"], data["weight"], params, data["expert"]
    pairs = {
        "forward": (lambda: dense_forward(rows, one), lambda: moe_forward(*tokens)),
        "forward+backward": (
            lambda: dense_both(rows, one, drows),
            lambda: moe_both(*tokens, data["dy"]),
        ),
    }
    found = []
    for what, (plain, routed) in pairs.items():
        times = interleave.measure({"dense": plain, "moe_ffn": routed}, REPEATS.value)
        found.append(
            {
                **shape._asdict(),
                "what": what,
                "dtype": DTYPE.value,
                "backend": moe_kernels.choose(BACKEND.value),
                "dense_ms": times["dense"].wall,
                "moe_ffn_ms": times["moe_ffn"].wall,
                "ratio": times["moe_ffn"].wall / times["dense"].wall,
                "cpu_ratio": times["moe_ffn"].cpu / times["dense"].cpu,
            }
        )
    return found


def main(argv: list[str]) -> None:
    """Prints the table, and writes it where --json_out says."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    try:
        shapes = loads.parse(SHAPES.value)
        moe_kernels.choose(BACKEND.value)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    about = interleave.machine()
    print(" ".join(f"{name}={value}" for name, value in about.items()))
    print(f"{'T,d,f,E,k':26}{'what':18}{'dense ms':>10}{'moe_ffn ms':>12}{'ratio':>8}{'cpu':>8}")
    found = []
    for shape in shapes:
        for row in figures(shape):
            found.append(row)
            print(
                f"{','.join(map(str, shape)):26}{row['what']:18}{row['dense_ms']:10.1f}"
                f"{row['moe_ffn_ms']:12.1f}{row['ratio']:8.2f}{row['cpu_ratio']:8.2f}",
                flush=True,
            )
    if JSON_OUT.value:
        Path(JSON_OUT.value).write_text(json.dumps({"machine": about, "figures": found}, indent=1))


if __name__ == "__main__":
    app.run(main)
