"""Scores, the k best experts of each token, and their counts, in one pass over the logits."""

import jax
import jax.numpy as jnp
import triton
import triton.language as tl
from jaxtyping import Array, Float, Int

from moe_kernels.triton_gpu.launch import launch
from moe_kernels.triton_gpu.tiles import topk_tile


def topk_route(
    logits_te: Float[Array, "t e"], k: int, *, scores: str
) -> tuple[Int[Array, "t k"], Float[Array, "t k"], Int[Array, " e"]]:
    """`protocols.TopkRoute`: each program counts its own tokens, then the counts are added.

    A NaN ranks last, as -inf does, the lower id first, so ids are always in the range; all of NaN
    give the ids 0 to k - 1. Its own score is NaN, and with softmax every score of its token.
    """
    t, e = logits_te.shape
    tile = topk_tile(e)
    programs = -(-t // tile.block_m)
    expert, score, counts = launch(
        _topk_route,
        (logits_te,),
        (
            jax.ShapeDtypeStruct((t, k), jnp.int32),
            jax.ShapeDtypeStruct((t, k), jnp.float32),
            jax.ShapeDtypeStruct((programs, e), jnp.int32),
        ),
        grid=programs,
        tile=tile,
        sizes={"num_tokens": t},
        constants={"EXPERTS": e, "CHOICES": k, "SOFTMAX": scores == "softmax"},
    )
    return expert, score, jnp.sum(counts, axis=0, dtype=jnp.int32)


@triton.jit
def _topk_route(
    logits_ptr,
    expert_ptr,
    score_ptr,
    count_ptr,
    num_tokens,
    EXPERTS: tl.constexpr,
    CHOICES: tl.constexpr,
    SOFTMAX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    expert = tl.arange(0, BLOCK_N)
    token_ok, expert_ok = token < num_tokens, expert < EXPERTS
    logits = tl.load(
        logits_ptr + token[:, None] * EXPERTS + expert[None, :],
        mask=token_ok[:, None] & expert_ok[None, :],
        other=0.0,
    ).to(tl.float32)
    logits = tl.where(expert_ok[None, :], logits, -float("inf"))
    left = tl.where(logits == logits, logits, -float("inf"))  # a NaN ranks last
    top = tl.max(left, axis=1)
    total = tl.sum(tl.exp(logits - top[:, None]), axis=1)
    free = expert_ok[None, :] & token_ok[:, None]
    count = tl.zeros((BLOCK_N,), tl.int32)
    for choice in range(CHOICES):
        best = tl.max(left, axis=1)
        # Among equals the lowest id that is still free (a taken one may be -inf, as others are).
        candidate = tl.where(free & (left == best[:, None]), expert[None, :], BLOCK_N)
        chosen = tl.min(candidate, axis=1)
        hit = free & (expert[None, :] == chosen[:, None])
        logit = tl.sum(tl.where(hit, logits, 0.0), axis=1)
        score = tl.exp(logit - top) / total if SOFTMAX else tl.sigmoid(logit)
        tl.store(expert_ptr + token * CHOICES + choice, chosen, mask=token_ok)
        tl.store(score_ptr + token * CHOICES + choice, score, mask=token_ok)
        count += tl.sum(hit.to(tl.int32), axis=0)
        left = tl.where(hit, -float("inf"), left)
        free = free & (expert[None, :] != chosen[:, None])
    row = tl.program_id(0).to(tl.int64) * EXPERTS
    tl.store(count_ptr + row + expert, count, mask=expert_ok)
