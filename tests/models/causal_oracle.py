"""A causal language model as loops over tokens and heads in float64, from the hub's tensors."""

import numpy as np


def _norm(x, scale, eps):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * scale


def _act(name, x):
    if name == "silu":
        return x / (1 + np.exp(-x))
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def _frequency(rope, i, width):
    f = rope["rope_theta"] ** (-2 * i / width)
    if rope["rope_type"] == "linear":
        return f / rope["factor"]
    if rope["rope_type"] == "llama3":
        length, wave = rope["original_max_position_embeddings"], 2 * np.pi / f
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        if wave > length / low:
            return f / rope["factor"]
        if wave >= length / high:
            m = (length / wave - low) / (high - low)
            return (1 - m) * f / rope["factor"] + m * f
    return f


def _turn(x, position, rope):
    """Pairs (i, i + half) as complex numbers."""
    half = len(x) // 2
    z = x[:half] + 1j * x[half:]
    angles = np.array([position * _frequency(rope, i, len(x)) for i in range(half)])
    z = z * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag])


def _heads(config, w, start, name, x, count, width):
    out = w[f"{start}.{name}_proj.weight"] @ x + w.get(f"{start}.{name}_proj.bias", 0)
    scale, kind = w.get(f"{start}.{name}_norm.weight"), config["model_type"]
    if scale is not None and kind == "olmoe":
        out = _norm(out, scale, config["rms_norm_eps"])
    if config.get("clip_qkv"):
        out = np.clip(out, -config["clip_qkv"], config["clip_qkv"])
    out = out.reshape(count, width)
    if scale is not None and kind == "qwen3_moe":
        out = _norm(out, scale, config["rms_norm_eps"])
    return out


def _attention(config, w, start, x_sd):
    h, g = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or config["hidden_size"] // h
    rope = config["rope_parameters"]
    q = [
        [_turn(y, t, rope) for y in _heads(config, w, start, "q", x, h, width)]
        for t, x in enumerate(x_sd)
    ]
    k = [
        [_turn(y, t, rope) for y in _heads(config, w, start, "k", x, g, width)]
        for t, x in enumerate(x_sd)
    ]
    v = [_heads(config, w, start, "v", x, g, width) for x in x_sd]
    out = []
    for t in range(len(x_sd)):
        first = max(0, t + 1 - (config.get("sliding_window") or t + 1))
        mixed = []
        for head in range(h):
            mine = head // (h // g)
            a = _softmax(
                np.array([q[t][head] @ k[u][mine] for u in range(first, t + 1)]) / np.sqrt(width)
            )
            mixed.append(sum(p * v[u][mine] for p, u in zip(a, range(first, t + 1), strict=True)))
        out.append(
            w[f"{start}.o_proj.weight"] @ np.concatenate(mixed) + w.get(f"{start}.o_proj.bias", 0)
        )
    return np.array(out)


def _glu(config, w, start, x, names=("up_proj", "gate_proj", "down_proj")):
    up, gate, down = (w[f"{start}.{n}.weight"] for n in names)
    return down @ (_act(config["hidden_act"], gate @ x) * (up @ x))


def _mixture(config, w, start, x, names):
    p = _softmax(w[f"{start}.gate.weight"] @ x)
    chosen = np.argsort(-p, kind="stable")[: config["num_experts_per_tok"]]
    weights = p[chosen]
    if config["model_type"] == "mixtral" or config.get("norm_topk_prob"):
        weights = weights / weights.sum()
    y = sum(
        g * _glu(config, w, f"{start}.experts.{e}", x, names)
        for g, e in zip(weights, chosen, strict=True)
    )
    if config["model_type"] == "qwen2_moe":
        opened = 1 / (1 + np.exp(-(w[f"{start}.shared_expert_gate.weight"] @ x)))
        y = y + opened * _glu(config, w, f"{start}.shared_expert", x)
    return y, chosen, weights


def run(config, tensors, ids):
    """Logits [s v], and chosen experts and weights [s l k] of one text."""
    w = {k: v.astype(np.float64) for k, v in tensors.items()}
    eps, x_sd = config["rms_norm_eps"], w["model.embed_tokens.weight"][ids]
    experts, weights = [], []
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        normed = _norm(x_sd, w[f"{layer}.input_layernorm.weight"], eps)
        x_sd = x_sd + _attention(config, w, f"{layer}.self_attn", normed)
        normed = _norm(x_sd, w[f"{layer}.post_attention_layernorm.weight"], eps)
        mixtral = f"{layer}.block_sparse_moe"
        start, names = f"{layer}.mlp", ("up_proj", "gate_proj", "down_proj")
        if f"{mixtral}.gate.weight" in w:
            start, names = mixtral, ("w3", "w1", "w2")
        if f"{start}.gate.weight" in w:
            got = [_mixture(config, w, start, x, names) for x in normed]
            x_sd = x_sd + np.array([y for y, _, _ in got])
            experts.append([e for _, e, _ in got])
            weights.append([g for _, _, g in got])
        else:
            x_sd = x_sd + np.array([_glu(config, w, start, x) for x in normed])
    table = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    logits = _norm(x_sd, w["model.norm.weight"], eps) @ table.T
    if not experts:
        return logits, None, None
    return logits, np.moveaxis(np.array(experts), 0, 1), np.moveaxis(np.array(weights), 0, 1)
