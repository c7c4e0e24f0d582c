"""A Switch Transformer as loops over positions and heads in float64, from the hub's tensors."""

import math

import numpy as np

from tests.models.small_switch import sparse


def _norm(x, scale, eps):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * scale


def _act(name, x):
    if name == "relu":
        return np.maximum(x, 0)
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def bucket(distance, both_sides, buckets, furthest):
    """Bucket of key - query, by walking up the borders between buckets."""
    first = 0
    if both_sides:
        buckets //= 2
        first, distance = (buckets if distance > 0 else 0), abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    found = exact
    # Bucket n starts at exact * (furthest / exact) ** ((n - exact) / (buckets - exact)).
    while found + 1 < buckets and distance >= exact * (furthest / exact) ** (
        (found + 1 - exact) / (buckets - exact)
    ) * (1 - 1e-9):
        found += 1
    return first + found


def _attention(config, w, start, x_sd, source_md, seen, table, both_sides):
    h, width = config["num_heads"], config["d_kv"]
    q, k, v = (
        (y @ w[f"{start}.{n}.weight"].T).reshape(-1, h, width)
        for n, y in (("q", x_sd), ("k", source_md), ("v", source_md))
    )
    out = []
    for t in range(len(x_sd)):
        mixed = []
        for head in range(h):
            keys = [u for u in range(len(source_md)) if seen(t, u)]
            scores = [q[t, head] @ k[u, head] for u in keys]
            if table is not None:
                n = config["relative_attention_num_buckets"]
                far = config["relative_attention_max_distance"]
                scores = [
                    s + table[bucket(u - t, both_sides, n, far), head]
                    for s, u in zip(scores, keys, strict=True)
                ]
            mixed.append(
                sum(p * v[u, head] for p, u in zip(_softmax(np.array(scores)), keys, strict=True))
            )
        out.append(w[f"{start}.o.weight"] @ np.concatenate(mixed))
    return np.array(out)


def _dense(config, w, start, x):
    return w[f"{start}.wo.weight"] @ _act(config["dense_act_fn"], w[f"{start}.wi.weight"] @ x)


def _mixture(config, w, start, x_sd, suppressed):
    """Tokens of one sequence in order, each expert taking the first `expert_capacity`."""
    taken, experts, weights, y_sd = {}, [], [], np.zeros_like(x_sd)
    for t, x in enumerate(x_sd):
        z = w[f"{start}.router.classifier.weight"] @ x + w.get(f"{start}.router.classifier.bias", 0)
        z[list(suppressed)] = -np.inf
        p = _softmax(z)
        e = int(np.argmax(p))
        taken[e] = taken.get(e, 0) + 1
        if taken[e] > config["expert_capacity"]:
            experts.append(config["num_experts"])
            weights.append(0.0)
            continue
        y_sd[t] = p[e] * _dense(config, w, f"{start}.experts.expert_{e}", x)
        experts.append(e)
        weights.append(p[e])
    return y_sd, experts, weights


def _stack(config, w, stack, x_sd, where, source=None, suppress=None):
    """States and, for each layer with a mixture, experts and weights."""
    eps, decoder = config["layer_norm_epsilon"], stack == "decoder"
    table = w[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    routing = []

    states, source_where = (None, None) if source is None else source

    def mine(t, u):
        return where[u] and (u <= t or not decoder)

    def theirs(t, u):
        return source_where[u]

    for i in range(config["num_decoder_layers" if decoder else "num_layers"]):
        block = f"{stack}.block.{i}.layer"
        h = _norm(x_sd, w[f"{block}.0.layer_norm.weight"], eps)
        x_sd = x_sd + _attention(
            config, w, f"{block}.0.SelfAttention", h, h, mine, table, not decoder
        )
        last = f"{block}.1"
        if decoder:
            h = _norm(x_sd, w[f"{block}.1.layer_norm.weight"], eps)
            x_sd = x_sd + _attention(
                *(config, w, f"{block}.1.EncDecAttention", h, states),
                *(theirs, None, None),
            )
            last = f"{block}.2"
        h = _norm(x_sd, w[f"{last}.layer_norm.weight"], eps)
        if sparse(config, stack, i):
            out = (suppress or {}).get(len(routing), ())
            y_sd, experts, weights = _mixture(config, w, f"{last}.mlp", h, out)
            routing.append((experts, weights))
        else:
            y_sd = np.array([_dense(config, w, f"{last}.mlp", x) for x in h])
        x_sd = x_sd + y_sd
    return _norm(x_sd, w[f"{stack}.final_layer_norm.weight"], eps), routing


def run(config, tensors, ids, where, decoder_ids, *, suppress=None):
    """Logits [t v] of one text and the routing of encoder and decoder, [(experts, weights)] by layer.

    suppress: {"encoder" or "decoder": {layer with a mixture: experts}}.
    """
    w = {k: v.astype(np.float64) for k, v in tensors.items()}
    suppress = suppress or {}
    first = w.get("encoder.embed_tokens.weight", w["shared.weight"])
    states, encoder = _stack(
        config, w, "encoder", first[ids], where, suppress=suppress.get("encoder")
    )
    second = w.get("decoder.embed_tokens.weight", w["shared.weight"])
    everywhere = np.ones(len(decoder_ids), bool)
    h, decoder = _stack(
        *(config, w, "decoder", second[decoder_ids], everywhere),
        source=(states, where),
        suppress=suppress.get("decoder"),
    )
    if config["tie_word_embeddings"]:
        return h / math.sqrt(config["d_model"]) @ w["shared.weight"].T, encoder, decoder
    return h @ w["lm_head.weight"].T, encoder, decoder


def greedy(config, tensors, ids, count):
    """Token by token, everything read again each time; the decoder's gates see one token at a time."""
    # A token read alone always finds room, so reading all at once without a limit is the same.
    w = {k: v.astype(np.float64) for k, v in tensors.items()}
    first = w.get("encoder.embed_tokens.weight", w["shared.weight"])
    where = np.ones(len(ids), bool)
    states, encoder = _stack(config, w, "encoder", first[ids], where)
    roomy = config | {"expert_capacity": 10**6}
    second = w.get("decoder.embed_tokens.weight", w["shared.weight"])
    head = w["shared.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    read, decoder = [config["decoder_start_token_id"]], []
    for _ in range(count):
        everywhere = np.ones(len(read), bool)
        h, decoder = _stack(roomy, w, "decoder", second[read], everywhere, source=(states, where))
        read.append(int(np.argmax(head @ h[-1])))
        if read[-1] == config["eos_token_id"]:
            break
    return read[1:], encoder, decoder
