"""Rivals of `moe_ffn`: each takes the same data, or says why it cannot run here.

dense              one gated block that tokens * k rows go through: the same activated FLOPs
einsum             one-hot dispatch and combine einsums (GShard), room for the fullest expert, so
                   that no choice is lost
ragged_dot         sort, three lax.ragged_dot, unsort, weighted sum
tokamax            the same with tokamax.ragged_dot
xla                `moe_ffn` by its backend "xla", which runs everywhere
torch_eager        PyTorch, a loop over experts with index_add, as in transformers' eager experts
torch_grouped_mm   PyTorch, sort and torch.nn.functional.grouped_mm

A rival whose estimated FLOPs or memory are more than 20 times the dense block's is left out with
that reason unless it is forced.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import checks
import floor
import jax
import jax.numpy as jnp
import numpy as np
from checks import PARAMETERS, with_gradients
from jax import lax
from loads import Shape

ABSURD = 20.0
"""Times the dense block's FLOPs or bytes from which a rival is not worth running."""


class Unavailable(Exception):
    """A rival cannot run here; the message is the reason."""


class Peer(NamedTuple):
    """A rival, bound to its data."""

    forward: Callable[[], Any]  # gives y; returns once work is on its way, or done
    both: Callable[[Any], Any]  # dy -> y, (dx, dweight, dparams)
    data: dict[str, Any]  # the problem it solves, in `moe_ffn`'s terms
    to_dy: Callable[[Any], Any] = lambda dy: dy  # from a JAX array to what `both` is timed with


def build(name: str, shape: Shape, data: dict[str, Any], force: bool) -> Peer:
    """The rival of that name for this problem.

    Raises:
      Unavailable: it cannot run here.
    """
    return BUILDERS[name](shape, data, force)


def names(text: str) -> tuple[str, ...]:
    """The rivals of "name,name" or "all"; dense is always the first.

    Raises:
      ValueError: there is no rival of that name.
    """
    chosen = list(BUILDERS) if text == "all" else [n.strip() for n in text.split(",") if n.strip()]
    for name in chosen:
        if name not in BUILDERS:
            raise ValueError(f"peer {name!r} is none of {', '.join(BUILDERS)} (or all)")
    return ("dense", *dict.fromkeys(name for name in chosen if name != "dense"))


def dense(shape: Shape, data: dict[str, Any], force: bool) -> Peer:
    """Tokens * k rows through the first expert, as plain products."""
    del force

    def forward(x: Any, weight: Any, params: Any) -> Any:
        del weight
        # A reshape, so that gradients have the stacks' shape at no cost.
        w = {name: a.reshape(a.shape[1:]) for name, a in params.items()}
        return (jax.nn.silu(x @ w["w_gate"]) * (x @ w["w_in"])) @ w["w_out"]

    rows = shape.tokens * shape.k
    own = {name: data[name][:1] for name in PARAMETERS}
    own |= {name: jnp.tile(data[name], (shape.k, 1)) for name in ("x", "dy")}
    own |= {"expert": jnp.zeros((rows, 1), jnp.int32), "weight": jnp.ones((rows, 1), jnp.float32)}
    found = _compiled(forward, own)

    def both(dy: Any) -> Any:
        y, (dx, _, dparams) = found.both(dy)
        return y, (dx, None, dparams)

    return found._replace(both=both)


def einsum(shape: Shape, data: dict[str, Any], force: bool) -> Peer:
    """GShard's dispatch and combine, with as much capacity as the fullest expert needs."""
    t, d, f, e, k = shape
    room = int(np.bincount(np.asarray(data["expert"]).reshape(-1), minlength=e).max())
    flops = 6.0 * e * room * d * f + 4.0 * t * e * room * d
    size = data["x"].dtype.itemsize
    memory = 2 * t * e * room * size + e * room * (2 * d + 3 * f) * size
    if not force:
        _refuse_absurd(shape, data["x"].dtype, flops, memory)

    def forward(x: Any, weight: Any, params: Any, expert: Any) -> Any:
        flat = jax.nn.one_hot(expert.reshape(-1), e, dtype=jnp.int32)
        place = jnp.sum((jnp.cumsum(flat, axis=0) - 1) * flat, axis=1).reshape(t, k)
        expert_tke = jax.nn.one_hot(expert, e, dtype=x.dtype)
        place_tkc = jax.nn.one_hot(place, room, dtype=x.dtype)
        dispatch = jnp.einsum("tke,tkc->tec", expert_tke, place_tkc)
        combine = jnp.einsum("tk,tke,tkc->tec", weight.astype(x.dtype), expert_tke, place_tkc)
        x_ecd = jnp.einsum("tec,td->ecd", dispatch, x)
        gate = jax.nn.silu(jnp.einsum("ecd,edf->ecf", x_ecd, params["w_gate"]))
        h_ecf = gate * jnp.einsum("ecd,edf->ecf", x_ecd, params["w_in"])
        y_ecd = jnp.einsum("ecf,efd->ecd", h_ecf, params["w_out"])
        return jnp.einsum("tec,ecd->td", combine, y_ecd)

    return _compiled(forward, data, data["expert"])


def ragged_dot(shape: Shape, data: dict[str, Any], force: bool) -> Peer:
    """Rows sorted by expert through lax.ragged_dot; on CPUs that multiplies by all experts."""
    if jax.default_backend() == "cpu" and not force:
        all_experts = floor.flops(shape, "forward") * shape.experts
        expanded = shape.tokens * shape.k * shape.experts * max(shape.d_model, shape.d_expert)
        memory = expanded * data["x"].dtype.itemsize
        _refuse_absurd(shape, data["x"].dtype, all_experts, memory)
    return _sorted_products(shape, data, lax.ragged_dot)


def tokamax(shape: Shape, data: dict[str, Any], force: bool) -> Peer:
    """The same products by tokamax.ragged_dot, its own choice of implementation."""
    if importlib.util.find_spec("tokamax") is None:
        raise Unavailable("the package tokamax is not installed")
    import tokamax as library

    del force
    peer = _sorted_products(shape, data, library.ragged_dot)
    try:
        jax.block_until_ready(peer.both(data["dy"]))
    except Exception as error:  # whatever it raises, it is not for this platform or dtype
        first = (str(error).splitlines() or ["no message"])[0]
        raise Unavailable(f"{type(error).__name__}: {first}") from None
    return peer


def own(backend: str, shape: Shape, data: dict[str, Any], force: bool) -> Peer:
    """`moe_ffn` by another backend than the one that is measured."""
    del shape, force
    forward, both = checks.layer(backend)
    args = (data["x"], data["weight"], {n: data[n] for n in PARAMETERS}, data["expert"])
    return Peer(lambda: forward(*args), lambda dy: both(*args, dy), data)


def _sorted_products(shape: Shape, data: dict[str, Any], product: Callable[..., Any]) -> Peer:
    def forward(x: Any, weight: Any, params: Any, expert: Any) -> Any:
        slot_expert = expert.reshape(-1)
        order = jnp.argsort(slot_expert, stable=True)
        place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
        sizes = jnp.bincount(slot_expert, length=shape.experts).astype(jnp.int32)
        rows = x[order // shape.k]
        gate = jax.nn.silu(product(rows, params["w_gate"], sizes))
        y = product(gate * product(rows, params["w_in"], sizes), params["w_out"], sizes)
        y_tkd = y[place].reshape(shape.tokens, shape.k, -1)
        return jnp.einsum("tkd,tk->td", y_tkd, weight.astype(x.dtype))

    return _compiled(forward, data, data["expert"])


def _compiled(forward: Callable[..., Any], data: dict[str, Any], *rest: Any) -> Peer:
    """A peer from forward(x, weight, params, *rest)."""
    args = (data["x"], data["weight"], {name: data[name] for name in PARAMETERS}, *rest)
    one, two = jax.jit(forward), jax.jit(with_gradients(forward))
    return Peer(lambda: one(*args), lambda dy: two(*args, dy), data)


def _refuse_absurd(shape: Shape, dtype: Any, flops: float, memory: float) -> None:
    dense_flops = floor.flops(shape, "forward")
    dense_bytes = floor.least_bytes(shape, "forward", dtype)
    for what, own, plain in (("FLOPs", flops, dense_flops), ("memory", memory, dense_bytes)):
        if own > ABSURD * plain:
            raise Unavailable(
                f"it would take {own / plain:.0f} times the dense {what}; --force runs it"
            )


def _from_torch(kind: str, shape: Shape, data: dict[str, Any], force: bool) -> Peer:
    if importlib.util.find_spec("torch") is None:
        raise Unavailable("the package torch is not installed")
    import peers_torch

    del force
    try:
        return Peer(*peers_torch.build(kind, shape, data))
    except peers_torch.Unsupported as error:
        raise Unavailable(str(error)) from None


BUILDERS: dict[str, Callable[[Shape, dict[str, Any], bool], Peer]] = {
    "dense": dense,
    "einsum": einsum,
    "ragged_dot": ragged_dot,
    "tokamax": tokamax,
    "xla": partial(own, "xla"),
    "torch_eager": partial(_from_torch, "eager"),
    "torch_grouped_mm": partial(_from_torch, "grouped_mm"),
}
