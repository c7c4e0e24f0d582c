r"""How one mixture-of-experts layer scales from 8 to 4,096 chips, from the bytes of its step.

  python scripts/scaling.py [--layer=d,f,E,k] [--tokens=8192] [--expert=8,64] [--exchange=NAME]
  JAX_NUM_CPU_DEVICES=8 python scripts/scaling.py --compile

A training step of the layer (forward, backward, gradient sums, AdamW) is traced over meshes that
need not exist, experts over neighbouring chips, everything else over `fsdp`, parameters sent as
bfloat16 and gradients as float32. Bytes are those of the step's own collectives
(moe_jax/training/collectives.py); the model of the networks, in this file, divides them by public
speeds, and the FLOPs of the expert products by the chip's peak. No overlap, no latency: shares are
those of a step whose products run at peak, so they say what bounds the layer, not how long it
takes.

Columns: GB that a chip sends and milliseconds, for tokens (dispatch and combine, both ways) and for
weights (gathered, gradients summed), milliseconds of the experts' products, the share of sending.

--compile compiles the step in float32 (XLA's CPU sends bfloat16 as float32) for 1, 2, 4 and 8 of
the devices here instead, and sets the bytes of XLA's program beside those of the trace.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx
from rich.console import Console
from rich.table import Table

from moe_jax.gating import GateConfig
from moe_jax.layers import ExpertOptions, MoE
from moe_jax.training import (
    Batches,
    Collective,
    MeshConfig,
    Task,
    TrainConfig,
    collectives,
    dry_run,
    make_mesh,
)
from moe_jax.training.collectives import compiled_bytes
from moe_jax.training.layout import Layout
from moe_jax.training.mesh import batch_spec
from moe_jax.training.state import Parts, abstract_model, first_state, streams
from moe_jax.training.step import make_optimizer, make_step

LAYER = flags.DEFINE_string("layer", "7168,2048,256,8", "d,f,E,k: widths, experts, chosen")
TOKENS = flags.DEFINE_integer("tokens", 8192, "tokens on each chip", lower_bound=1)
EXPERT = flags.DEFINE_list("expert", ["8", "64"], "sizes of the expert axis")
EXCHANGE = flags.DEFINE_string("exchange", "all_to_all", "or all_gather, ragged_all_to_all")
CHIPS = flags.DEFINE_list("chips", ["8", "64", "512", "4096"], "numbers of chips")
COMPILE = flags.DEFINE_bool("compile", False, "for the devices here, by XLA")


class Shape(NamedTuple):
    """Of a layer of gated experts."""

    d: int
    f: int
    experts: int
    k: int


class Layer(nnx.Module):
    """A layer as in the middle of a model: what comes before it needs its gradient."""

    def __init__(self, shape: Shape, exchange: str, rngs: nnx.Rngs):
        gate = GateConfig(num_experts=shape.experts, k=shape.k, renormalise=True)
        self.before_d = nnx.Param(jnp.ones(shape.d))
        self.moe = MoE(shape.d, shape.f, gate, options=ExpertOptions(exchange=exchange), rngs=rngs)

    def __call__(self, x):
        """[t d] -> [t d]."""
        return self.moe(x * self.before_d[...][None].astype(x.dtype))[0]


class LayerTask(Task):
    """One layer whose loss is the mean square of what it gives."""

    def __init__(self, shape: Shape, rows: int, exchange: str, dtype: str):
        self.shape, self.rows, self.exchange, self.dtype = shape, rows, exchange, dtype

    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        """The layer."""
        return Layer(self.shape, self.exchange, rngs)

    def loss(self, model, batch, rngs):
        """mean(y^2)."""
        return jnp.mean(jnp.square(model(batch["x"]).astype(jnp.float32))), {}

    def batch_like(self):
        """Tokens of all chips."""
        return {"x": jax.ShapeDtypeStruct((self.rows, self.shape.d), jnp.dtype(self.dtype))}

    def train_data(self, part: tuple[int, int] = (0, 1)) -> Batches:
        """Nothing is trained."""
        raise NotImplementedError

    def evaluate(self, model: nnx.Module) -> dict[str, float]:
        """Nothing is trained."""
        return {}


class Network(NamedTuple):
    """A machine: its peak, and seconds for a collective in a mesh of `chips`."""

    name: str
    flops: float
    seconds: Callable[[Collective, int, int], float]  # (collective, size of expert axis, chips)


NVLINK, INFINIBAND, NODE = 450e9, 50e9, 8  # bytes/s out of a GPU; GPUs in a node


def _h100(c: Collective, expert: int, chips: int) -> float:
    """Nodes of eight on NVLink, one InfiniBand port of 400 Gbit/s for each GPU."""
    n, stride = c.devices, expert if c.axes == ("fsdp",) else 1
    here = min(n, max(1, NODE // stride))  # members of a group in one node
    if c.kind.endswith("all_to_all"):
        on, off = c.operand * (here - 1) / n, c.operand * (n - here) / n
        return max(on / NVLINK, off / INFINIBAND)
    whole = c.operand * n if c.kind == "all_gather" else c.operand
    nodes = n // here
    once = whole * (here - 1) / here / NVLINK + whole / here * (nodes - 1) / nodes / INFINIBAND
    return 2 * once if c.kind == "all_reduce" else once


LINK = 100e9  # bytes/s of one of the six links, in each direction


def _v5p(c: Collective, expert: int, chips: int) -> float:
    """A cube of chips, a torus from 4x4x4; experts on a smaller cube within."""
    side, edge = round(chips ** (1 / 3)), round(expert ** (1 / 3))
    if c.axes == ("expert",):
        wraps = edge == side and side > 2
        if c.kind.endswith("all_to_all"):  # what crosses the middle of the cube
            return c.operand * edge / ((8 if wraps else 4) * LINK)
        rate = 3 * LINK * (2 if wraps else 1)
    elif c.axes == ("fsdp",):  # the groups of `edge` neighbours share each link
        rate = 3 * 2 * LINK / edge
    else:
        rate = 3 * 2 * LINK
    whole = c.operand * c.devices if c.kind == "all_gather" else c.operand
    once = whole * (c.devices - 1) / c.devices / rate
    return 2 * once if c.kind == "all_reduce" else once


NETWORKS = (Network("H100", 989e12, _h100), Network("TPU v5p", 459e12, _v5p))


def products(shape: Shape, tokens: int) -> float:
    """FLOPs of the experts' three products, forward and backward: 18 T k d f."""
    return 18.0 * tokens * shape.k * shape.d * shape.f


def main(argv: list[str]) -> None:
    """Print the tables."""
    del argv
    shape = Shape(*(int(n) for n in LAYER.value.split(",")))
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    if COMPILE.value:
        console.print(_compiled(shape))
        return
    for network in NETWORKS:
        console.print(_planned(network, shape))


def _settings(chips: int, expert: int, dtype: str) -> TrainConfig:
    mesh = MeshConfig(data=1, fsdp=chips // expert, expert=expert)
    return TrainConfig(mesh=mesh, dtype=dtype)


def _planned(network: Network, shape: Shape) -> Table:
    title = f"{network.name}: d={shape.d} f={shape.f} E={shape.experts} k={shape.k}, "
    table = Table(title=f"{title}{TOKENS.value:,} tokens a chip", title_justify="left")
    for name in ("chips", "expert", "tokens GB", "weights GB", "products ms", "tokens ms"):
        table.add_column(name, justify="right")
    for name in ("weights ms", "sending"):
        table.add_column(name, justify="right")
    table.add_column("bound by")
    for chips in map(int, CHIPS.value):
        for expert in (int(e) for e in EXPERT.value if int(e) <= chips):
            table.add_row(*_row(network, shape, chips, expert))
    return table


def _row(network: Network, shape: Shape, chips: int, expert: int) -> list[str]:
    task = LayerTask(shape, chips * TOKENS.value, EXCHANGE.value, "bfloat16")
    found = dry_run(task, _settings(chips, expert, "bfloat16"), chips).collectives
    found = [c for c in found if not c.in_loop]
    tokens = [c for c in found if c.axes == ("expert",)]
    weights = [c for c in found if c.axes != ("expert",)]
    size = [sum(c.sent * c.times for c in some) / 1e9 for some in (tokens, weights)]
    times = [
        sum(network.seconds(c, expert, chips) * c.times for c in some) * 1e3
        for some in (tokens, weights)
    ]
    work = products(shape, TOKENS.value) / network.flops * 1e3
    sending = sum(times) / (sum(times) + work)
    parts = {"products": work, "tokens": times[0], "weights": times[1]}
    figures = [f"{x:.2f}" for x in size] + [f"{x:.1f}" for x in (work, *times)]
    return [
        f"{chips:,}",
        str(expert),
        *figures,
        f"{sending:.0%}",
        max(parts, key=parts.__getitem__),
    ]


def _compiled(shape: Shape) -> Table:
    table = Table(title="A step compiled by XLA for the devices here", title_justify="left")
    for name in ("devices", "fsdp x expert", "MFLOP", "put in by XLA", "by the trace", "sent kB"):
        table.add_column(name, justify="right")
    for network in NETWORKS:
        table.add_column(f"sending, {network.name}", justify="right")
    for chips in (1, 2, 4, 8):
        for expert in sorted({1, min(2, chips), chips}):
            table.add_row(*_compiled_row(shape, chips, expert))
    return table


def _compiled_row(shape: Shape, chips: int, expert: int) -> list[str]:
    task = LayerTask(shape, chips * TOKENS.value, EXCHANGE.value, "float32")
    config = _settings(chips, expert, "float32")
    parts = Parts(model := abstract_model(task), task.trainable)
    layout, optimizer = Layout(parts, make_mesh(config.mesh), config.dtype), make_optimizer(config)
    key = streams(0)[2]
    state = jax.eval_shape(lambda p, r: first_state(p, r, optimizer, key), *parts.split(model))
    shardings = layout.shardings(optimizer, state)
    like = task.batch_like()["x"]
    spread = jax.NamedSharding(layout.mesh, batch_spec(like, layout.mesh))
    batch = {"x": jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=spread)}
    state = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings
    )
    step = make_step(task, parts, config, layout)
    found = collectives(jax.make_jaxpr(step)(state, batch), layout.mesh.shape)
    text = jax.jit(step, donate_argnums=0).lower(state, batch).compile().as_text()
    by_xla = sum(compiled_bytes(text).values())
    by_trace = sum(c.operand * c.times for c in found)
    sent = sum(c.sent * c.times for c in found if not c.in_loop)
    work = products(shape, TOKENS.value)
    shares = []
    for network in NETWORKS:
        seconds = sum(network.seconds(c, expert, chips) * c.times for c in found if not c.in_loop)
        shares.append(f"{seconds / (seconds + work / network.flops):.0%}")
    sizes = f"{chips // expert} x {expert}"
    figures = [f"{work / 1e6:,.0f}", f"{by_xla:,}", f"{by_trace:,}", f"{sent / 1e3:,.1f}"]
    return [str(chips), sizes, *figures, *shares]


if __name__ == "__main__":
    app.run(main)
