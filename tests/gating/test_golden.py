"""Every known gate against the router that defines it: stored values, and live under `-m parity`."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.gating import GateConfig, Routing, gate_logits, route

GOLDEN = Path(__file__).parents[1] / "golden" / "gating.npz"
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_golden_gating.py"


def load_golden():
    """{name: (GateConfig fields, arrays)} of the stored cases."""
    with np.load(GOLDEN) as stored:
        fields = json.loads(str(stored["fields"]))
        cases: dict = {name: (config, {}) for name, config in fields.items()}
        for key in stored.files:
            if key != "fields":
                name, part = key.split("/")
                cases[name][1][part] = stored[key]
    return cases


CASES = load_golden()


def as_dense(routing: Routing):
    """What multiplies each expert's output [t e]."""
    tokens, experts = routing.probs.shape
    rows = jnp.arange(tokens)[:, None]
    return jnp.zeros((tokens, experts)).at[rows, routing.expert].add(routing.weight, mode="drop")


def run(fields, arrays):
    """(multiplier, routing, gradients of sum(multiplier * cotangent) by x and w)."""
    config = GateConfig(**fields)
    bias = jnp.asarray(arrays["bias"]) if "bias" in arrays else None
    segments = jnp.asarray(arrays["segments"]) if "segments" in arrays else None
    b = jnp.asarray(arrays["b"]) if "b" in arrays else None

    cotangent = arrays.get("cotangent", np.zeros_like(arrays["chosen"], np.float32))

    def objective(x, w):
        routing = route(gate_logits(x, w.T, b=b), config, bias=bias, segments=segments)
        multiplier = as_dense(routing)
        return jnp.sum(multiplier * cotangent), (multiplier, routing)

    evaluate = jax.jit(jax.grad(objective, (0, 1), has_aux=True))
    gradients, (multiplier, routing) = evaluate(jnp.asarray(arrays["x"]), jnp.asarray(arrays["w"]))
    return multiplier, routing, gradients


def compare(fields, arrays, *, tolerance):
    got, routing, gradients = run(fields, arrays)
    chosen = np.zeros(routing.probs.shape, bool)
    for token, experts in enumerate(np.asarray(routing.expert)):
        chosen[token, experts[experts < routing.probs.shape[1]]] = True
    np.testing.assert_array_equal(chosen, arrays["chosen"])
    np.testing.assert_allclose(got, arrays["multiplier"], atol=tolerance, rtol=tolerance)
    if "dx" in arrays:
        np.testing.assert_allclose(gradients[0], arrays["dx"], atol=10 * tolerance, rtol=1e-4)
        np.testing.assert_allclose(gradients[1], arrays["dw"], atol=30 * tolerance, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(CASES))
def test_matches_golden(name):
    compare(*CASES[name], tolerance=2e-6)


def test_golden_file_has_every_kind():
    fields = [config for config, _ in CASES.values()]
    seen = {key for config in fields for key in config}
    assert {config.get("score", "softmax") for config in fields} == {
        "softmax",
        "sigmoid",
        "sparsemixer",
    }
    assert seen >= {
        *("topk_first", "renormalise", "renormalise_eps", "scale", "num_groups", "groups_kept"),
        *("group_score", "capacity", "capacity_factor", "priority", "choice", "temperature"),
    }
    # The cases bite: capacity drops something, and groups and biases change the choice.
    for name in ("switch", "gshard_top2", "vmoe_priority", "capacity_by_sequence"):
        config, arrays = CASES[name]
        assert arrays["chosen"].sum() < config["k"] * len(arrays["x"])
    for name, without in (
        ("deepseek_v2_groups", {"num_groups": 1, "groups_kept": 1}),
        ("deepseek_v3", {"num_groups": 1, "groups_kept": 1}),
    ):
        config, arrays = CASES[name]
        plain = run(config | without, arrays)[0]
        assert np.any((np.asarray(plain) > 0) != arrays["chosen"])
    config, arrays = CASES["minimax_m2"]
    plain = run(config, {k: v for k, v in arrays.items() if k != "bias"})[0]
    assert np.any((np.asarray(plain) > 0) != arrays["chosen"])


@pytest.mark.parity
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_matches_transformers(seed):
    spec = importlib.util.spec_from_file_location("make_golden_gating", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    names = []
    for name, fields, arrays in script.live_cases(seed):
        compare(fields, arrays, tolerance=3e-6)
        names.append(name)
    assert len(names) == 20
