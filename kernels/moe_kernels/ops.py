"""The single operations that the layer is made of, each with its own backward pass.

They work on a `Plan` (`make_plan(expert_tk, num_experts)`), made once and shared by all of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float, Int

from moe_kernels import backends
from moe_kernels.arguments import check_floats, check_shape, wide
from moe_kernels.explicit_mesh import per_device, place_of, refuse_sharded
from moe_kernels.first_order import reverse_only
from moe_kernels.plan import Plan, below
from moe_kernels.precision import resolve
from moe_kernels.varying import match_axes


class How(NamedTuple):
    """What is fixed while tracing."""

    backend: str | None
    precision: str | None


class Choice(NamedTuple):
    """The same for `topk_route`."""

    backend: str | None
    precision: str | None
    k: int
    scores: str


class Operation(NamedTuple):
    """Functions that are an operation with its backward pass: `first_order.reverse_only`."""

    plain: Callable[..., Any]
    backward: Callable[..., Any]
    keep: Callable[..., Any] = lambda *args: args
    made: Callable[[Any], Any] = lambda out: ()


def gather_gemm(
    x: Float[Array, "t d"],
    w: Float[Array, "e d f"],
    plan: Plan,
    *,
    bias: Float[Array, "e f"] | None = None,
    backend: str | None = None,
) -> Float[Array, "s f"]:
    """Every row's token through the matrix of the row's expert: y_r = x[token_r] W[e_r] + b[e_r].

    Args:
      x: tokens.
      w: one matrix for each expert, in the dtype of x.
      plan: of t * k slots for e experts.
      bias: one vector for each expert, or None.
      backend: as in `moe_ffn`.

    Returns:
      y, in the order of the plan and the dtype of x, summed in float32; rows of dropped slots
      are 0. Reverse-mode derivatives exist for x, w and bias.

    Raises:
      ValueError: a shape, dtype or name is wrong; the message names the argument.
    """
    x = jnp.asarray(x)
    check_shape("x", x, ("tokens", "d_model"))
    _check_plan(plan, x.shape[0])
    return _grouped("gather_gemm", x, w, bias, plan.offset, plan, backend)


def grouped_gemm(
    x: Float[Array, "s d"],
    w: Float[Array, "e d f"],
    offset: Int[Array, " boundaries"],
    *,
    bias: Float[Array, "e f"] | None = None,
    backend: str | None = None,
) -> Float[Array, "s f"]:
    """Sorted rows, each through the matrix of its expert: y_r = x_r W[e_r] + b[e_r].

    Args:
      x: rows sorted by expert.
      w: one matrix for each expert, in the dtype of x.
      offset: expert e owns rows offset[e]:offset[e+1], int32, e + 1 numbers (`Plan.offset`).
      bias: one vector for each expert, or None.
      backend: as in `moe_ffn`.

    Returns:
      y, in the dtype of x, summed in float32; rows from offset[-1] on are 0. Reverse-mode
      derivatives exist for x, w and bias.

    Raises:
      ValueError: a shape, dtype or name is wrong; the message names the argument.
    """
    x = jnp.asarray(x)
    check_shape("x", x, ("rows", "d_model"))
    return _grouped("grouped_gemm", x, w, bias, jnp.asarray(offset), None, backend)


def combine(
    y: Float[Array, "s d"],
    weight: Float[Array, "t k"],
    plan: Plan,
    *,
    backend: str | None = None,
) -> Float[Array, "t d"]:
    """Every token's rows, weighted and summed: out_t = sum_k weight_tk * y[row of (t, k)].

    Args:
      y: rows in the plan's order.
      weight: combine weights; those of dropped slots count as 0, whatever they hold.
      plan: of t * k slots.
      backend: as in `moe_ffn`.

    Returns:
      out, in the dtype of y, summed in float32. Reverse-mode derivatives exist for y and weight.

    Raises:
      ValueError: a shape, dtype or name is wrong; the message names the argument.
    """
    y, weight = jnp.asarray(y), jnp.asarray(weight)
    check_shape("y", y, ("rows", "d_model"), (plan.slot.size, None))
    check_floats(y=y, weight=weight)
    _check_weight(weight, plan)
    refuse_sharded("combine", y=y, weight=weight, plan=plan)
    how, weight = _how(backend), weight.astype(wide(y.dtype))
    if weight.size == 0 or y.shape[1] == 0:
        return jnp.zeros((weight.shape[0], y.shape[1]), y.dtype)
    return _call(COMBINE, how, *match_axes((y, weight, plan)))


def segment_pool(
    x: Float[Array, "t d"],
    weight: Float[Array, "t k"],
    plan: Plan,
    *,
    backend: str | None = None,
) -> Float[Array, "e d"]:
    """What every expert collects: z_e = sum of weight_tk * x_t over the (t, k) that chose e.

    The transpose of `combine`: a weighted scatter-sum, done without scattering, so it gives the
    same bits every time.

    Args:
      x: tokens.
      weight: weights; those of dropped slots count as 0, whatever they hold.
      plan: of t * k slots.
      backend: as in `moe_ffn`.

    Returns:
      z, in the dtype of x, summed in float32; 0 for experts that nobody chose. Reverse-mode
      derivatives exist for x and weight.

    Raises:
      ValueError: a shape, dtype or name is wrong; the message names the argument.
    """
    x, weight = jnp.asarray(x), jnp.asarray(weight)
    check_shape("x", x, ("tokens", "d_model"))
    check_floats(x=x, weight=weight)
    _check_plan(plan, x.shape[0])
    _check_weight(weight, plan)
    refuse_sharded("segment_pool", x=x, weight=weight, plan=plan)
    how, weight = _how(backend), weight.astype(wide(x.dtype))
    if weight.size == 0 or x.shape[1] == 0:
        return jnp.zeros((plan.offset.size - 1, x.shape[1]), x.dtype)
    return _call(POOL, how, *match_axes((x, weight, plan)))


def topk_route(
    logits: Float[Array, "t e"],
    k: int,
    *,
    scores: str = "softmax",
    renormalise: bool = False,
    backend: str | None = None,
) -> tuple[Int[Array, "t k"], Float[Array, "t k"], Int[Array, " e"]]:
    """Scores, the k best of each token, and how many tokens chose each expert, in one pass.

    score_te = softmax over e, or sigmoid, of the logits, in float32; with `renormalise` the k
    chosen ones are divided by their sum. Gates with more to them (groups, biases, capacity, noise)
    are in moe_jax.gating.

    NaN ranks last, beside -inf, and in every case the k ids of a token differ and are in range (all
    NaN: 0 to k-1). Weights are NaN wherever the scores are: softmax makes those of a whole token
    NaN if one of its logits is, sigmoid only that one's.

    Where tokens are sharded over Explicit axes of a mesh, each device works on its own.

    Args:
      logits: router logits, any float dtype.
      k: 1 to e.
      scores: "softmax" or "sigmoid".
      renormalise: whether the weights of a token add up to 1.
      backend: as in `moe_ffn`.

    Returns:
      expert (int32, best first; the lower id wins a tie), weight (float32) and count (int32, of
      all tokens). Reverse-mode derivatives exist for the weights by the logits.

    Raises:
      ValueError: a shape, dtype or name is wrong; the message names the argument.
    """
    logits = jnp.asarray(logits)
    check_shape("logits", logits, ("tokens", "experts"))
    check_floats(logits=logits)
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k={k} must be at least 1 and at most experts={logits.shape[1]}")
    if scores not in ("softmax", "sigmoid"):
        raise ValueError(f"scores={scores!r} is neither softmax nor sigmoid")
    options = Choice(*_how(backend), k, scores), renormalise
    if place := place_of(logits):
        whole = (False, False, True)
        own = *options, place.tokens
        return per_device(_own_topk_route, place, logits, (), options=own, whole=whole)
    return _topk_route(logits, *options)


def _own_topk_route(logits: Array, _: Any, options: Any) -> tuple[Array, Array, Array]:
    """A device's tokens; the counts are of all of them."""
    how, renormalise, axes = options
    expert, weight, count = _topk_route(logits, how, renormalise)
    return expert, weight, lax.psum(count, axes) if axes else count


def _topk_route(logits: Array, how: Choice, renormalise: bool) -> tuple[Array, Array, Array]:
    t, e = logits.shape
    if t == 0:
        empty = jnp.zeros((0, how.k), jnp.float32)
        return empty.astype(jnp.int32), empty, jnp.zeros(e, jnp.int32)
    expert, weight, count = _call(TOPK, how, logits.astype(jnp.float32))
    if renormalise:
        weight = weight / jnp.sum(weight, axis=1, keepdims=True)
    return expert, weight, count


def _how(backend: str | None) -> How:
    return How(None if backend is None else backends.resolve_backend(backend), resolve(None))


def _call(operation: Operation, how: How | Choice, *args: Any) -> Any:
    """The operation with its own backward pass, or as the reference has it: to be derived."""
    plain, backward = (partial(f, how) for f in operation[:2])
    if how.backend == "reference":
        return plain(*args)

    def forward(*args: Any) -> tuple[Any, Any]:
        out = plain(*args)
        return out, operation.made(out)

    why = backends.only_once(how.backend)
    return reverse_only(why, plain, forward, operation.keep, backward)(*args)


def _run(how: How | Choice, name: str, arrays: dict[str, Any], **static: Any) -> Any:
    """`backends.run`, one mapped element at a time under vmap."""

    def run(arrays: dict[str, Any]) -> Any:
        with jax.default_matmul_precision(how.precision):
            return backends.run(how.backend, name, arrays, **static)

    return (run if how.backend == "reference" else sequential_vmap(run))(arrays)


def _check_plan(plan: Plan, tokens: int) -> None:
    slots = plan.slot.size
    if slots % tokens if tokens else slots:
        raise ValueError(f"plan has {slots} slots, which is not a multiple of x's {tokens} tokens")


def _check_weight(weight: Array, plan: Plan) -> None:
    check_shape("weight", weight, ("tokens", "k"))
    if weight.size != plan.slot.size:
        raise ValueError(
            f"weight has shape {weight.shape}, {weight.size} slots; plan has {plan.slot.size}"
        )


def _grouped(
    operation: str,
    x: Array,
    w: Array,
    bias: Array | None,
    offset: Array,
    plan: Plan | None,
    backend: str | None,
) -> Array:
    w, bias = jnp.asarray(w), None if bias is None else jnp.asarray(bias)
    check_floats(x=x, w=w)
    check_shape("w", w, ("experts", "d_model", "d_expert"), (None, x.shape[1], None))
    if min(w.shape) < 1:
        raise ValueError(f"w has shape {w.shape}; every axis must be at least 1 long")
    e, _, f = w.shape
    check_shape("plan.offset" if plan else "offset", offset, ("experts + 1",), (e + 1,))
    if bias is not None:
        check_shape("bias", bias, ("experts", "d_expert"), (e, f))
    for name, array in {"w": w, "bias": bias}.items():
        if array is not None and array.dtype != x.dtype:
            raise ValueError(f"{name} is {array.dtype} but x is {x.dtype}; cast one to the other")
    refuse_sharded(operation, x=x, w=w, bias=bias, **{"plan" if plan else "offset": plan or offset})
    how = _how(backend)
    if (plan.slot.size if plan else x.shape[0]) == 0:
        return jnp.zeros((0, f), x.dtype)
    return _call(MATMUL, how, *match_axes((x, w, bias, offset, plan)))


def _matmul(
    how: How, x: Array, w: Array, bias: Array | None, offset: Array, plan: Plan | None
) -> Array:
    index = None if plan is None else plan.token
    arrays = {"x": x, "w": w, "offset": offset, "index": index, "bias": bias}
    return _owned(_run(how, "grouped_matmul", arrays), offset)


def _matmul_kept(x: Array, w: Array, bias: Array | None, offset: Array, plan: Any) -> Any:
    # Of the bias only its presence is needed.
    return x, w, None if bias is None else bias[:0], offset, plan


def _matmul_bwd(how: How, kept: Any, made: Any, dy: Array) -> tuple[Any, ...]:
    x, w, bias, offset, plan = kept
    token = None if plan is None else plan.token
    dx = _run(how, "grouped_matmul", {"x": dy, "w": w, "offset": offset}, transposed=True)
    if plan is None:
        dx = _owned(dx, offset)
    else:
        row_tk = plan.row.reshape(x.shape[0], -1)
        rows = {"y_sd": dx, "row_tk": row_tk, "kept": offset[-1], "weight_tk": None}
        dx = _run(how, "combine", rows)
    dw = _run(how, "weight_grad", {"x": x, "dy": dy, "offset": offset, "x_index": token})
    dbias = None if bias is None else _run(how, "segment_pool", {"x": dy, "offset": offset})
    return dx, dw, dbias, None, None


MATMUL = Operation(_matmul, _matmul_bwd, keep=_matmul_kept)


def _combine(how: How, y: Array, weight: Array, plan: Plan) -> Array:
    row_tk = plan.row.reshape(weight.shape)
    rows = {"y_sd": y, "row_tk": row_tk, "kept": plan.offset[-1], "weight_tk": weight}
    return _run(how, "combine", rows)


def _combine_bwd(how: How, kept: Any, made: Any, dout: Array) -> tuple[Any, ...]:
    y, weight, plan = kept
    dout_s = dout[plan.token].astype(wide(y.dtype))
    dweight_s = jnp.sum(_owned(y, plan.offset).astype(dout_s.dtype) * dout_s, axis=1)
    dweight_s = _owned(dweight_s, plan.offset)
    weight_s = weight.reshape(-1)[plan.slot].astype(dout_s.dtype)
    dy = _owned(weight_s[:, None] * dout_s, plan.offset).astype(y.dtype)
    return dy, dweight_s[plan.row].reshape(weight.shape).astype(weight.dtype), None


COMBINE = Operation(_combine, _combine_bwd)


def _pool(how: How, x: Array, weight: Array, plan: Plan) -> Array:
    weight_s = weight.reshape(-1)[plan.slot]
    arrays = {"x": x, "offset": plan.offset, "index": plan.token, "weight_s": weight_s}
    return _run(how, "segment_pool", arrays)


def _pool_bwd(how: How, kept: Any, made: Any, dz_ed: Array) -> tuple[Any, ...]:
    x, weight, plan = kept
    row_tk = plan.row.reshape(weight.shape)
    kept_tk = row_tk < plan.offset[-1]
    expert_tk = below(plan.offset, row_tk + 1) - 1
    # A combine whose rows are one for each expert, and one that a dropped choice may point to.
    num_experts = jnp.int32(dz_ed.shape[0])
    rows = {
        "y_sd": jnp.pad(dz_ed, ((0, 1), (0, 0))),
        "row_tk": jnp.where(kept_tk, expert_tk, num_experts),
        "kept": num_experts,
        "weight_tk": weight,
    }
    dx = _run(how, "combine", rows)
    sums = wide(x.dtype)
    by_expert_te = jnp.matmul(x, dz_ed.T, precision="highest", preferred_element_type=sums)
    dweight = jnp.take_along_axis(by_expert_te, jnp.where(kept_tk, expert_tk, 0), axis=1)
    return dx, jnp.where(kept_tk, dweight, 0).astype(weight.dtype), None


POOL = Operation(_pool, _pool_bwd)


def _topk(how: Choice, logits: Array) -> tuple[Array, Array, Array]:
    return _run(how, "topk_route", {"logits_te": logits}, k=how.k, scores=how.scores)


def _topk_bwd(how: Choice, kept: Any, made: Any, d: Any) -> tuple[Array]:
    (logits,), (expert, score) = kept, made
    dscore = d[1]
    if how.scores == "sigmoid":
        chosen = dscore * score * (1 - score)
        probs_te = None
    else:
        chosen = dscore * score
        probs_te = jax.nn.softmax(logits.astype(jnp.float32))
    # The k chosen ids of a token differ, so adding over k puts each where it belongs.
    ids = jnp.arange(logits.shape[1])
    hit_tke = expert[:, :, None] == ids[None, None, :]
    dlogits = jnp.sum(jnp.where(hit_tke, chosen[:, :, None], 0), axis=1)
    if probs_te is not None:
        dlogits -= probs_te * jnp.sum(chosen, axis=1, keepdims=True)
    return (dlogits.astype(logits.dtype),)


TOPK = Operation(_topk, _topk_bwd, made=lambda out: out[:2])


def _owned(values: Array, offset: Array) -> Array:
    """Zeros in place of the unused rows, whatever they hold."""
    own = jnp.arange(values.shape[0]) < offset[-1]
    return jnp.where(own.reshape(-1, *(1,) * (values.ndim - 1)), values, 0)
