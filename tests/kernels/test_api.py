"""`moe_ffn` and bad input: one clear ValueError that names the argument."""

import inspect
import re

import jax
import jax.numpy as jnp
import moe_kernels
import pytest
from moe_kernels import BACKENDS, resolve_backend
from moe_kernels.backends import missing

from tests.kernels.moe_ffn_cases import problem

# Without the annotations' own checks, which tests turn on and users don't have.
moe_ffn = inspect.unwrap(moe_kernels.moe_ffn)


def arguments(**changes):
    x, expert, weight, params, _ = problem(0, t=4, k=2, d=6, f=5, e=3)
    return {"x": x, "expert": expert, "weight": weight, **params, **changes}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x": jnp.zeros((4, 1, 6))}, "x has shape (4, 1, 6); it must be (tokens, d_model)"),
        ({"x": jnp.zeros((4, 6), jnp.int32)}, "x holds int32; it must be one of bfloat16"),
        ({"x": jnp.zeros((4, 7))}, "w_in has shape (3, 6, 5); it must be (experts, d_model=7"),
        (
            {"expert": jnp.zeros((5, 2), jnp.int32)},
            "expert has shape (5, 2); it must be (tokens=4, k)",
        ),
        ({"expert": jnp.zeros((4, 2))}, "expert holds float32; expert ids must be integers"),
        ({"expert": jnp.zeros((4, 2), bool)}, "expert holds bool; expert ids must be integers"),
        ({"expert": jnp.zeros((4, 0), jnp.int32)}, "expert has k=0 choices per token"),
        ({"weight": jnp.zeros((4, 3))}, "weight has shape (4, 3); it must be (tokens=4, k=2)"),
        ({"weight": jnp.zeros((4, 2), jnp.int32)}, "weight holds int32"),
        ({"w_in": jnp.zeros((6, 5))}, "w_in has shape (6, 5); it must be (experts, d_model=6"),
        ({"w_in": jnp.zeros((0, 6, 5))}, "w_in has shape (0, 6, 5); every axis must be at least 1"),
        ({"w_in": jnp.zeros((3, 6, 5), jnp.bfloat16)}, "w_in is bfloat16 but x is float32"),
        (
            {"w_out": jnp.zeros((3, 6, 5))},
            "w_out has shape (3, 6, 5); it must be (experts=3, d_expert=5, d_model=6)",
        ),
        ({"w_gate": jnp.zeros((3, 6, 4))}, "w_gate has shape (3, 6, 4)"),
        ({"w_gate": None}, "b_gate was given without w_gate"),
        ({"b_in": jnp.zeros((3, 6))}, "b_in has shape (3, 6); it must be (experts=3, d_expert=5)"),
        ({"b_gate": jnp.zeros((5,))}, "b_gate has shape (5,)"),
        ({"b_out": jnp.zeros((3, 5))}, "b_out has shape (3, 5); it must be (experts=3, d_model=6)"),
        (
            {"precision": "best"},
            "precision='best' is no precision of matrix products: use 'default'",
        ),
        ({"activation": "swish"}, "activation='swish' is none of silu, gelu, gelu_tanh"),
        (
            {"backend": "cuda"},
            "backend='cuda' is none of reference, xla, c_cpu, triton_gpu, pallas_tpu (or None)",
        ),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        moe_ffn(**arguments(**changes))


def test_bad_input_under_jit_is_found_while_tracing():
    with pytest.raises(ValueError, match="w_out has shape"):
        jax.eval_shape(lambda w: moe_ffn(**arguments(w_out=w)), jnp.zeros((3, 5, 7)))


def test_none_picks_one_for_the_cpu_and_a_name_picks_itself():
    assert resolve_backend(None) in ("c_cpu", "xla")  # tests run on CPU
    assert resolve_backend(None, "bfloat16") == "xla"
    for name in BACKENDS:
        if missing(name):
            with pytest.raises(
                ValueError, match=f"^backend='{name}' cannot be used here: the pack"
            ):
                resolve_backend(name)
        else:
            assert resolve_backend(name) == name
    shape = jax.eval_shape(lambda: moe_ffn(**arguments()))
    assert shape.shape == (4, 6)


@pytest.mark.parametrize("bad", [-1, 4])
def test_ids_out_of_range_are_an_error_in_debug_mode_only(bad):
    expert = jnp.asarray([[0, 1], [bad, 3], [2, 2], [0, 0]], jnp.int32)
    moe_ffn(**arguments(expert=expert))  # dropped
    with jax.enable_checks(True):
        with pytest.raises(ValueError, match=f"expert holds the id {bad}; ids are 0 to 2, or 3"):
            moe_ffn(**arguments(expert=expert))
        with pytest.raises(Exception, match=f"expert holds the id {bad}; ids are 0 to 2, or 3"):
            jax.block_until_ready(jax.jit(lambda e: moe_ffn(**arguments(expert=e)))(expert))
        moe_ffn(**arguments(expert=jnp.asarray([[0, 3]] * 4, jnp.int32)))


def precisions(function, *args):
    """What the products of a program and of its gradient ask for."""
    text = str(jax.make_jaxpr(function)(*args))
    return set(re.findall(r" precision=(\([^)]*\)|\S+)", text)) - {"None"}


@pytest.mark.parametrize("backend", ["xla", "reference"])
@pytest.mark.parametrize(
    "asked, context, want",
    [
        ("highest", None, "HIGHEST"),
        (jax.lax.Precision.HIGH, None, "HIGH"),
        (None, "highest", "HIGHEST"),
        ("default", "highest", "DEFAULT"),
        (None, None, None),
    ],
)
def test_precision_reaches_the_products_of_both_passes(asked, context, want, backend):
    x, expert, weight, params, _ = problem(0, t=4, k=2, d=6, f=5, e=3, extras=("w_gate",))

    def value(x):
        return moe_ffn(x, expert, weight, **params, precision=asked, backend=backend)

    with jax.default_matmul_precision(context):
        _, pull = jax.vjp(value, x)
        forward = precisions(value, x)
    # The backward pass, traced elsewhere, asks for the same.
    backward = precisions(pull, x)
    right = set() if want is None else {f"(Precision.{want}, Precision.{want})"}
    assert forward == backward == right


def calls(jaxpr, target):
    """How often a program calls a C kernel."""
    found = 0
    for eqn in jaxpr.eqns:
        found += eqn.params.get("target_name") == target
        parts = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns"))
        for part in parts:
            part = getattr(part, "jaxpr", part)
            found += calls(part, target) if hasattr(part, "eqns") else 0
    return found


def test_names_keep_what_the_backward_pass_needs():
    x, expert, weight, params, _ = problem(0, t=12)

    def value(x, weight, params):
        return jnp.sum(moe_ffn(x, expert, weight, **params, backend="c_cpu"))

    def work(policy):
        both = jax.value_and_grad(jax.checkpoint(value, policy=policy), argnums=(0, 1, 2))
        jaxpr = jax.make_jaxpr(both)(x, weight, params).jaxpr
        return [calls(jaxpr, f"moe_{name}") for name in ("plan", "forward", "hidden_grad")]

    policies = jax.checkpoint_policies
    assert work(policies.nothing_saveable) == [2, 2, 1]
    assert work(policies.save_only_these_names(*moe_kernels.RESIDUALS)) == [1, 1, 1]
