"""The single operations on the backends that run anywhere, and bad input."""

import inspect
import re

import jax.numpy as jnp
import moe_kernels
import pytest
from moe_kernels import make_plan

from tests.kernels.ops_cases import OpsCases


class TestReference(OpsCases):
    backend = "reference"


class TestXla(OpsCases):
    backend = "xla"


class TestXlaInBfloat16(OpsCases):
    backend = "xla"
    half = "bfloat16"


PLAN = make_plan(jnp.zeros((4, 2), jnp.int32), 3)
X, W, WEIGHT = jnp.zeros((4, 6)), jnp.zeros((3, 6, 5)), jnp.zeros((4, 2))


@pytest.mark.parametrize(
    "name, args, options, message",
    [
        ("gather_gemm", (jnp.zeros(4), W, PLAN), {}, "x has shape (4,); it must be (tokens"),
        ("gather_gemm", (jnp.zeros((3, 6)), W, PLAN), {}, "plan has 8 slots, which is not a multi"),
        ("gather_gemm", (X, jnp.zeros((3, 5, 6)), PLAN), {}, "w has shape (3, 5, 6); it must be"),
        ("gather_gemm", (X, jnp.zeros((2, 6, 5)), PLAN), {}, "plan.offset has shape (4,); it must"),
        (
            "grouped_gemm",
            (X, W[:0], jnp.zeros(1, jnp.int32)),
            {},
            "w has shape (0, 6, 5); every axis",
        ),
        ("gather_gemm", (X, W.astype("float16"), PLAN), {}, "w is float16 but x is float32"),
        ("gather_gemm", (X, W, PLAN), {"bias": jnp.zeros(5)}, "bias has shape (5,); it must be"),
        ("gather_gemm", (X, W, PLAN), {"backend": "cuda"}, "backend='cuda' is none of"),
        ("grouped_gemm", (X, W, jnp.zeros(3, jnp.int32)), {}, "offset has shape (3,); it must be"),
        (
            "combine",
            (jnp.zeros((7, 6)), WEIGHT, PLAN),
            {},
            "y has shape (7, 6); it must be (rows=8",
        ),
        ("combine", (jnp.zeros((8, 6)), WEIGHT[:3], PLAN), {}, "weight has shape (3, 2), 6 slots"),
        ("segment_pool", (X, WEIGHT.astype(int), PLAN), {}, "weight holds int32"),
        ("topk_route", (X, 7), {}, "k=7 must be at least 1 and at most experts=6"),
        ("topk_route", (X, 0), {}, "k=0 must be at least 1"),
        ("topk_route", (X, 1), {"scores": "tanh"}, "scores='tanh' is neither softmax nor sigmoid"),
    ],
)
def test_bad_input(name, args, options, message):
    call = inspect.unwrap(getattr(moe_kernels, name))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call(*args, **options)
