"""The single operations that the layer is made of, each with its own backward pass.

They work on a `Plan` (`make_plan(expert_tk, num_experts)`), made once and shared by all of them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float, Int

from moe_kernels import backends
from moe_kernels.arguments import check_floats, check_shape
from moe_kernels.manual_axes import unify
from moe_kernels.plan import Plan


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
    check_shape("x", x, ("tokens", "d_model"))
    _check_plan(plan, x.shape[0])
    return _grouped(x, w, bias, plan.offset, plan, backend)


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
    check_shape("x", x, ("rows", "d_model"))
    return _grouped(x, w, bias, offset, None, backend)


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
    check_shape("y", y, ("rows", "d_model"), (plan.slot.size, None))
    check_floats(y=y, weight=weight)
    _check_weight(weight, plan)
    if weight.size == 0:
        return jnp.zeros((weight.shape[0], y.shape[1]), y.dtype)
    y, weight, plan = unify((y, weight, plan))
    return _combine(_name(backend), y, weight, plan)


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
    check_shape("x", x, ("tokens", "d_model"))
    check_floats(x=x, weight=weight)
    _check_plan(plan, x.shape[0])
    _check_weight(weight, plan)
    if weight.size == 0:
        return jnp.zeros((plan.offset.size - 1, x.shape[1]), x.dtype)
    x, weight, plan = unify((x, weight, plan))
    return _pool(_name(backend), x, weight, plan)


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

    Args:
      logits: router logits, any float dtype.
      k: 1 to e.
      scores: "softmax" or "sigmoid".
      renormalise: whether the weights of a token add up to 1.
      backend: as in `moe_ffn`.

    Returns:
      expert (int32, best first; the lower id wins a tie), weight (float32) and count (int32).
      Reverse-mode derivatives exist for the weights by the logits.

    Raises:
      ValueError: a shape, dtype or name is wrong; the message names the argument.
    """
    check_shape("logits", logits, ("tokens", "experts"))
    check_floats(logits=logits)
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k={k} must be at least 1 and at most experts={logits.shape[1]}")
    if scores not in ("softmax", "sigmoid"):
        raise ValueError(f"scores={scores!r} is neither softmax nor sigmoid")
    expert, weight, count = _topk(_name(backend), k, scores, logits)
    if renormalise:
        weight = weight / jnp.sum(weight, axis=1, keepdims=True)
    return expert, weight, count


def _run(backend: str | None, name: str, arrays: dict[str, Any], **static: Any) -> Any:
    """`backends.run`, one mapped element at a time under vmap."""
    return sequential_vmap(lambda arrays: backends.run(backend, name, arrays, **static))(arrays)


def _name(backend: str | None) -> str | None:
    return None if backend is None else backends.choose(backend)


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
    x: Array, w: Array, bias: Array | None, offset: Array, plan: Plan | None, backend: str | None
) -> Array:
    check_floats(x=x, w=w)
    check_shape("w", w, ("experts", "d_model", "d_expert"), (None, x.shape[1], None))
    e, _, f = w.shape
    check_shape("plan.offset" if plan else "offset", offset, ("experts + 1",), (e + 1,))
    if bias is not None:
        check_shape("bias", bias, ("experts", "d_expert"), (e, f))
    for name, array in {"w": w, "bias": bias}.items():
        if array is not None and array.dtype != x.dtype:
            raise ValueError(f"{name} is {array.dtype} but x is {x.dtype}; cast one to the other")
    if (plan.slot.size if plan else x.shape[0]) == 0:
        return jnp.zeros((0, f), x.dtype)
    x, w, bias, offset, plan = unify((x, w, bias, offset, plan))
    return _matmul(_name(backend), x, w, bias, offset, plan)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul(
    backend: str | None, x: Array, w: Array, bias: Array | None, offset: Array, plan: Plan | None
) -> Array:
    index = None if plan is None else plan.token
    arrays = {"x": x, "w": w, "offset": offset, "index": index, "bias": bias}
    return _owned(_run(backend, "grouped_matmul", arrays), offset)


def _matmul_fwd(backend: str | None, *args: Any) -> tuple[Array, Any]:
    x, w, bias, offset, plan = args
    # Of the bias only its presence is needed.
    return _matmul(backend, *args), (x, w, None if bias is None else bias[:0], offset, plan)


def _matmul_bwd(backend: str | None, saved: Any, dy: Array) -> tuple[Any, ...]:
    x, w, bias, offset, plan = saved
    token = None if plan is None else plan.token
    dx = _run(backend, "grouped_matmul", {"x": dy, "w": w, "offset": offset}, transposed=True)
    if plan is None:
        dx = _owned(dx, offset)
    else:
        row_tk = plan.row.reshape(x.shape[0], -1)
        rows = {"y_sd": dx, "row_tk": row_tk, "kept": offset[-1], "weight_tk": None}
        dx = _run(backend, "combine", rows)
    dw = _run(backend, "weight_grad", {"x": x, "dy": dy, "offset": offset, "x_index": token})
    dbias = None if bias is None else _run(backend, "segment_pool", {"x": dy, "offset": offset})
    return dx, dw, dbias, None, None


_matmul.defvjp(_matmul_fwd, _matmul_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _combine(backend: str | None, y: Array, weight: Array, plan: Plan) -> Array:
    row_tk = plan.row.reshape(weight.shape)
    rows = {"y_sd": y, "row_tk": row_tk, "kept": plan.offset[-1], "weight_tk": weight}
    return _run(backend, "combine", rows)


def _combine_fwd(backend: str | None, y: Array, weight: Array, plan: Plan) -> tuple[Array, Any]:
    return _combine(backend, y, weight, plan), (y, weight, plan)


def _combine_bwd(backend: str | None, saved: Any, dout: Array) -> tuple[Any, ...]:
    y, weight, plan = saved
    dout_s = dout[plan.token].astype(_wide(y))
    dweight_s = jnp.sum(_owned(y, plan.offset).astype(dout_s.dtype) * dout_s, axis=1)
    dweight_s = _owned(dweight_s, plan.offset)
    weight_s = weight.reshape(-1)[plan.slot].astype(dout_s.dtype)
    dy = _owned(weight_s[:, None] * dout_s, plan.offset).astype(y.dtype)
    return dy, dweight_s[plan.row].reshape(weight.shape).astype(weight.dtype), None


_combine.defvjp(_combine_fwd, _combine_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pool(backend: str | None, x: Array, weight: Array, plan: Plan) -> Array:
    weight_s = weight.reshape(-1)[plan.slot]
    arrays = {"x": x, "offset": plan.offset, "index": plan.token, "weight_s": weight_s}
    return _run(backend, "segment_pool", arrays)


def _pool_fwd(backend: str | None, x: Array, weight: Array, plan: Plan) -> tuple[Array, Any]:
    return _pool(backend, x, weight, plan), (x, weight, plan)


def _pool_bwd(backend: str | None, saved: Any, dz_ed: Array) -> tuple[Any, ...]:
    x, weight, plan = saved
    row_tk = plan.row.reshape(weight.shape)
    kept_tk = row_tk < plan.offset[-1]
    expert_tk = jnp.searchsorted(plan.offset, row_tk, side="right").astype(jnp.int32) - 1
    # A combine whose rows are one for each expert, and one that a dropped choice may point to.
    num_experts = jnp.int32(dz_ed.shape[0])
    rows = {
        "y_sd": jnp.pad(dz_ed, ((0, 1), (0, 0))),
        "row_tk": jnp.where(kept_tk, expert_tk, num_experts),
        "kept": num_experts,
        "weight_tk": weight,
    }
    dx = _run(backend, "combine", rows)
    wide = _wide(x)
    by_expert_te = jnp.matmul(x, dz_ed.T, precision="highest", preferred_element_type=wide)
    dweight = jnp.take_along_axis(by_expert_te, jnp.where(kept_tk, expert_tk, 0), axis=1)
    return dx, jnp.where(kept_tk, dweight, 0).astype(weight.dtype), None


_pool.defvjp(_pool_fwd, _pool_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _topk(backend: str | None, k: int, scores: str, logits: Array) -> tuple[Array, Array, Array]:
    return _run(backend, "topk_route", {"logits_te": logits}, k=k, scores=scores)


def _topk_fwd(backend: str | None, k: int, scores: str, logits: Array) -> tuple[Any, Any]:
    out = _topk(backend, k, scores, logits)
    return out, (logits, *out[:2])


def _topk_bwd(backend: str | None, k: int, scores: str, saved: Any, d: Any) -> tuple[Array]:
    logits, expert, score = saved
    dscore = d[1]
    if scores == "sigmoid":
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


_topk.defvjp(_topk_fwd, _topk_bwd)


def _owned(values: Array, offset: Array) -> Array:
    """Zeros in place of the rows that belong to nobody, whatever they hold."""
    own = jnp.arange(values.shape[0]) < offset[-1]
    return jnp.where(own.reshape(-1, *(1,) * (values.ndim - 1)), values, 0)


def _wide(array: Array) -> Any:
    return jnp.promote_types(array.dtype, jnp.float32)
