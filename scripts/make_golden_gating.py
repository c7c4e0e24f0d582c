"""Golden values of transformers' routers for tests/gating/test_golden.py.

    python scripts/make_golden_gating.py tests/golden/gating.npz

Made with transformers 5.18.0 and torch 2.13.0 (CPU). Each case is one router module of transformers
with tiny random weights, the `GateConfig` fields that should describe it, and what the module
says: the multiplier of every expert for every token (0 where not chosen), which experts were
chosen, and the gradient of sum(multiplier * cotangent) with respect to the input and the router's
weight. `live_cases` is also what the parity tests run, with other seeds.

The last seven cases have no module: they are written out here in float64 loops, from the papers.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

T, D, E = 24, 8, 16  # tokens (2 sequences of 12), width, experts


def live_cases(seed: int) -> Iterator[tuple[str, dict[str, Any], dict[str, np.ndarray]]]:
    """Yields (name, GateConfig fields, arrays) for each router module."""
    import torch

    torch.manual_seed(seed)
    for name, fields, call in _routers():
        x = torch.randn(T, D)
        w = torch.randn(E, D) * 0.6
        b = torch.randn(E) * 0.5
        bias = torch.randn(E) * 0.1
        cotangent = torch.randn(T, E)
        x.requires_grad_(True)
        w.requires_grad_(True)
        multiplier, chosen, uses = call(x, w, b, bias)
        (multiplier * cotangent).sum().backward()
        arrays = {
            "x": x,
            "w": w,
            "cotangent": cotangent,
            "multiplier": multiplier,
            "dx": x.grad,
            "dw": w.grad,
        }
        if "b" in uses:
            arrays["b"] = b
        if "bias" in uses:
            arrays["bias"] = bias
        numpy = {key: value.detach().numpy() for key, value in arrays.items()}
        numpy["chosen"] = chosen.numpy()
        if "segments" in uses:
            numpy["segments"] = np.repeat(np.arange(2), T // 2)
        yield name, {"num_experts": E, **fields}, numpy


def _routers():
    """(name, fields, function of x, w, b, bias -> multiplier [t e], chosen [t e], arrays used)."""
    import torch
    import transformers as tf
    from torch import nn
    from transformers import models as m

    def swap(module, name, value):
        """Make `value` the parameter, so that its gradient is ours to read."""
        delattr(module, name)
        setattr(module, name, value)

    def dense(weight, index):
        zeros = torch.zeros(T, E)
        return zeros.scatter(1, index, weight), zeros.bool().scatter(1, index, True)

    def topk_router(make, at=(), bias_argument=False):
        """Modules that return (logits, weights, indices)."""

        def call(x, w, b, bias):
            module = make().eval()
            holder = module
            for part in at:
                holder = getattr(holder, part)
            swap(holder, "weight", w)
            uses = set()
            if isinstance(getattr(module, "bias", None), nn.Parameter):
                swap(module, "bias", b)
                uses = {"b"}
            if hasattr(module, "e_score_correction_bias"):
                module.e_score_correction_bias = bias
                uses = {"bias"}
            if bias_argument:
                uses = {"bias"}
                _, weight, index = module(x, bias)
            else:
                _, weight, index = module(x)
            return *dense(weight, index), uses

        return call

    deepseek = {"hidden_size": D, "num_attention_heads": 4, "num_experts_per_tok": 4}
    deepseek |= {"n_group": 4, "topk_group": 2}
    v3 = {**deepseek, "n_routed_experts": E, "routed_scaling_factor": 2.5}
    v3_fields = {
        "k": 4,
        "score": "sigmoid",
        "num_groups": 4,
        "groups_kept": 2,
        "group_score": "top2_sum",
        "scale": 2.5,
    }
    v3_norm = {"renormalise": True, "renormalise_eps": 1e-20}

    def config(cls, k=4, **kwargs):
        return cls(hidden_size=D, num_experts_per_tok=k, **kwargs)

    def v2(**kwargs):
        return m.deepseek_v2.modeling_deepseek_v2.DeepseekV2TopkRouter(
            tf.DeepseekV2Config(**deepseek, n_routed_experts=E, **kwargs)
        )

    def v3_router(**kwargs):
        return m.deepseek_v3.modeling_deepseek_v3.DeepseekV3TopkRouter(
            tf.DeepseekV3Config(**v3, **kwargs)
        )

    yield (
        "mixtral",
        {"k": 2, "renormalise": True},
        topk_router(
            lambda: m.mixtral.modeling_mixtral.MixtralTopKRouter(
                config(tf.MixtralConfig, 2, num_local_experts=E)
            )
        ),
    )
    yield (
        "olmoe",
        {"k": 8},
        topk_router(
            lambda: m.olmoe.modeling_olmoe.OlmoeTopKRouter(
                config(tf.OlmoeConfig, 8, num_experts=E, norm_topk_prob=False)
            )
        ),
    )
    yield (
        "qwen2_moe",
        {"k": 4},
        topk_router(
            lambda: m.qwen2_moe.modeling_qwen2_moe.Qwen2MoeTopKRouter(
                config(tf.Qwen2MoeConfig, num_experts=E, norm_topk_prob=False)
            )
        ),
    )
    yield (
        "qwen3_moe",
        {"k": 4, "renormalise": True},
        topk_router(
            lambda: m.qwen3_moe.modeling_qwen3_moe.Qwen3MoeTopKRouter(
                config(tf.Qwen3MoeConfig, num_experts=E, norm_topk_prob=True)
            )
        ),
    )
    yield (
        "jamba",
        {"k": 2},
        topk_router(
            lambda: m.jamba.modeling_jamba.JambaTopKRouter(config(tf.JambaConfig, 2, num_experts=E))
        ),
    )
    yield (
        "deepseek_v2_greedy",
        {"k": 4, "scale": 16.0},
        topk_router(lambda: v2(topk_method="greedy", routed_scaling_factor=16.0)),
    )
    yield (
        "deepseek_v2_groups",
        {"k": 4, "scale": 1.5, "num_groups": 4, "groups_kept": 2, "group_score": "max"},
        topk_router(lambda: v2(topk_method="group_limited_greedy", routed_scaling_factor=1.5)),
    )
    yield (
        "deepseek_v3",
        {**v3_fields, **v3_norm},
        topk_router(lambda: v3_router(norm_topk_prob=True)),
    )
    yield "deepseek_v3_raw", v3_fields, topk_router(lambda: v3_router(norm_topk_prob=False))
    yield (
        "glm4_moe",
        {**v3_fields, **v3_norm},
        topk_router(
            lambda: m.glm4_moe.modeling_glm4_moe.Glm4MoeTopkRouter(
                tf.Glm4MoeConfig(**v3, norm_topk_prob=True)
            )
        ),
    )
    yield (
        "lfm2_moe",
        {"k": 4, "score": "sigmoid", "renormalise": True, "renormalise_eps": 1e-6, "scale": 2.0},
        topk_router(
            lambda: m.lfm2_moe.modeling_lfm2_moe.Lfm2MoeTopKRouter(
                config(
                    tf.Lfm2MoeConfig,
                    num_experts=E,
                    norm_topk_prob=True,
                    use_expert_bias=True,
                    routed_scaling_factor=2.0,
                )
            ),
            bias_argument=True,
        ),
    )
    yield (
        "minimax_m2",
        {"k": 4, "score": "sigmoid", "renormalise": True},
        topk_router(
            lambda: m.minimax_m2.modeling_minimax_m2.MiniMaxM2TopKRouter(
                config(tf.MiniMaxM2Config, num_local_experts=E)
            ),
            bias_argument=True,
        ),
    )
    yield (
        "gpt_oss",
        {"k": 4, "topk_first": True},
        topk_router(
            lambda: m.gpt_oss.modeling_gpt_oss.GptOssTopKRouter(
                config(tf.GptOssConfig, num_local_experts=E)
            )
        ),
    )
    yield (
        "granitemoe",
        {"k": 4, "topk_first": True},
        topk_router(
            lambda: m.granitemoe.modeling_granitemoe.GraniteMoeTopKRouter(
                config(tf.GraniteMoeConfig, num_local_experts=E)
            )
        ),
    )
    yield (
        "hunyuan_v1_moe",
        {"k": 4, "renormalise": True},
        topk_router(
            lambda: m.hunyuan_v1_moe.modeling_hunyuan_v1_moe.HunYuanMoEV1Gate(
                tf.HunYuanMoEV1Config(hidden_size=D, num_experts=E, moe_topk=4)
            ),
            at=("wg",),
        ),
    )
    yield (
        "phimoe",
        {"k": 2, "score": "sparsemixer", "sparsemixer_jitter": 0.3},
        topk_router(
            lambda: m.phimoe.modeling_phimoe.PhimoeTopKRouter(
                config(tf.PhimoeConfig, 2, num_local_experts=E, router_jitter_noise=0.3)
            )
        ),
    )
    yield from _odd_routers(swap, dense)


def _odd_routers(swap, dense):
    """Modules that answer in another form than (logits, weights, indices)."""
    import torch
    import transformers as tf
    from transformers import models as m

    def jetmoe(x, w, b, bias):
        gate = m.jetmoe.modeling_jetmoe.JetMoeTopKGating(D, E, 4)
        swap(gate.layer, "weight", w)
        order, token, gates, _, logits = gate(x)
        index = logits.topk(4, dim=1)[1]
        weight = torch.zeros(T * 4).scatter(0, order, gates).reshape(T, 4)
        assert (token == order // 4).all()
        return *dense(weight, index), set()

    def llama4(x, w, b, bias):
        router = m.llama4.modeling_llama4.Llama4Router(
            tf.Llama4TextConfig(hidden_size=D, num_local_experts=E, num_experts_per_tok=1)
        )
        swap(router, "weight", w)
        scores, _ = router(x)
        return scores, scores > 0, set()

    def switch(x, w, b, bias):
        router = m.switch_transformers.modeling_switch_transformers.SwitchTransformersTop1Router(
            tf.SwitchTransformersConfig(d_model=D, num_experts=E, expert_capacity=1)
        ).eval()
        swap(router.classifier, "weight", w)
        mask, top, _ = router(x.reshape(2, T // 2, D))
        mask = mask.reshape(T, E)
        return mask * top.reshape(T, 1), mask.bool(), {"segments"}

    def dbrx(x, w, b, bias):
        from types import SimpleNamespace

        ffn = SimpleNamespace(moe_normalize_expert_weights=1, top_k=4)
        route = m.dbrx.modeling_dbrx.DbrxFFN.route_tokens_to_experts
        weight, index = route(ffn, x @ w.T)
        return *dense(weight, index), set()

    yield "jetmoe", {"k": 4, "topk_first": True}, jetmoe
    yield "llama4", {"k": 1, "score": "sigmoid", "topk_first": True}, llama4
    yield "switch", {"k": 1, "capacity": 1}, switch
    yield "dbrx", {"k": 4, "renormalise": True}, dbrx


def paper_cases(seed: int) -> Iterator[tuple[str, dict[str, Any], dict[str, np.ndarray]]]:
    """Yields the gates that transformers lacks, in float64 loops; no gradients."""
    rng = np.random.default_rng(seed)

    def draw(**fields):
        x, w = rng.normal(size=(T, D)), rng.normal(size=(E, D)) * 0.6
        x, w = x.astype(np.float32), w.astype(np.float32)
        z = x.astype(np.float64) @ w.astype(np.float64).T
        p = np.exp(z - z.max(1, keepdims=True))
        return {"num_experts": E, **fields}, {"x": x, "w": w}, p / p.sum(1, keepdims=True)

    fields, arrays, p = draw(k=E)
    yield "dense", fields, arrays | {"multiplier": p, "chosen": p > 0}

    fields, arrays, p = draw(k=3, temperature=0.5)
    p = p**2 / (p**2).sum(1, keepdims=True)
    keep = p >= np.sort(p, axis=1)[:, -3][:, None]
    yield "temperature", fields, arrays | {"multiplier": p * keep, "chosen": keep}

    # GShard: two choices, normalised; first choices before second, in the order of the tokens.
    fields, arrays, p = draw(k=2, renormalise=True, capacity_factor=1.0)
    best = np.argsort(-p, axis=1)[:, :2]
    kept = _serve(best, range(T), capacity=3)
    top = np.where(p >= np.sort(p, axis=1)[:, -2][:, None], p, 0)
    multiplier = top / top.sum(1, keepdims=True) * kept
    yield "gshard_top2", fields, arrays | {"multiplier": multiplier, "chosen": kept}

    # V-MoE: batch-prioritised routing, tokens in the order of their largest weight.
    fields, arrays, p = draw(k=2, capacity=2, priority="score")
    best = np.argsort(-p, axis=1)[:, :2]
    kept = _serve(best, np.argsort(-p.max(1)), capacity=2)
    yield "vmoe_priority", fields, arrays | {"multiplier": p * kept, "chosen": kept}

    # Expert choice: each expert its best tokens.
    for name, extra, size in (("expert_choice", {}, 3), ("expert_choice_wide", {"capacity": 5}, 5)):
        fields, arrays, p = draw(k=2, choice="expert", **extra)
        kept = np.zeros((T, E), bool)
        for e in range(E):
            kept[np.argsort(-p[:, e])[:size], e] = True
        yield name, fields, arrays | {"multiplier": p * kept, "chosen": kept}

    # Capacity of 12 tokens * 2 / 16 * 1.5 = 2.25 -> 3 places in each sequence.
    fields, arrays, p = draw(k=2, capacity_factor=1.5)
    best = np.argsort(-p, axis=1)[:, :2]
    kept = _serve(best[: T // 2], range(T // 2), capacity=3)
    kept = np.concatenate([kept, _serve(best[T // 2 :], range(T // 2), capacity=3)])
    arrays["segments"] = np.repeat(np.arange(2), T // 2)
    yield "capacity_by_sequence", fields, arrays | {"multiplier": p * kept, "chosen": kept}


def _serve(best, order, capacity):
    """Which (token, expert) find room when choices are served choice by choice in `order`."""
    kept = np.zeros((len(best), E), bool)
    load = np.zeros(E, int)
    for choice in range(best.shape[1]):
        for token in order:
            expert = best[token, choice]
            kept[token, expert] = load[expert] < capacity
            load[expert] += 1
    return kept


def main() -> None:
    """Write all cases to the file that the command line names."""
    out: dict[str, np.ndarray] = {}
    fields = {}
    for name, config, arrays in [*live_cases(0), *paper_cases(0)]:
        fields[name] = config
        for key, value in arrays.items():
            exact = value.dtype == bool or key == "segments"
            out[f"{name}/{key}"] = value if exact else value.astype(np.float32)
    out["fields"] = np.array(json.dumps(fields))
    np.savez_compressed(sys.argv[1], **out)


if __name__ == "__main__":
    main()
