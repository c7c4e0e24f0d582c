"""Makes tests/golden/smollm2.json: what transformers gives for the embedded SmolLM2-135M-Instruct.

Needs torch (CPU), transformers and accelerate; made with torch 2.13.0 and transformers 5.23.0:

    PYTHONPATH=. python scripts/make_golden_smollm2.py

transformers reads the GGUF file by itself (its own names, dequantisation and order of rows), and
its tensors must be ours to the bit, or the script stops. The file holds, for each prompt, its
tokens (by a tokenizer that is set up here as the published tokenizer.json defines it), the 32
tokens of the greedy continuation in float32, and the smallest gap between the best and the second
logit on the way; and the 20 best logits after the first prompt.
"""

import json
import pathlib

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer

from moe_jax.models.embedded_lm import default_lm_file
from moe_jax.models.gguf_file import read_gguf

NEW = 32
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = (
    "The capital of France is",
    CHAT.format("What is 12 + 345?"),
    CHAT.format("Name three animals that can fly."),
    "In 1969, 2 astronauts walked on the Moon; they didn't stay",
    "def add(a, b):\n    return",
    "Zażółć gęślą jaźń; 東京は日本の首都です。 Ça va? 😀",
    "  spaces   and\ttabs\n\n\nand lines",
    "1024 experts, ½ of them at 3.50 tokens: x² + ٣ = Ⅻ",
    "Once upon a time there was a small robot who",
    CHAT.format("Write one sentence about rain."),
)
SPECIAL = 17


def published_tokenizer(file: pathlib.Path) -> Tokenizer:
    """The tokenizer.json of SmolLM2 written out, with the file's vocabulary and merges."""
    import gguf

    fields = gguf.GGUFReader(file).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    added = [
        {"id": i, "content": token, **flags, "special": True}
        for i, token in enumerate(tokens[:SPECIAL])
    ]
    cuts = [{"type": "Digits", "individual_digits": True}, {**level, "use_regex": True}]
    vocab = {token: i for i, token in enumerate(tokens)}
    raw = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts},
        "post_processor": None,
        "decoder": {**level, "add_prefix_space": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    return Tokenizer.from_str(json.dumps(raw))


def check_weights(model: transformers.LlamaForCausalLM, file: pathlib.Path) -> None:
    """Stops unless transformers and this library read the same weights and settings."""
    found = read_gguf(file)
    state = model.state_dict()
    assert set(state) - {"lm_head.weight"} == set(found.tensors.names)
    for name in found.tensors.names:
        np.testing.assert_array_equal(found.tensors.read(name), state[name].numpy(), err_msg=name)
    config = model.config
    assert dict(config.rope_parameters or {})["rope_theta"] == found.config.rope.theta == 100_000
    assert config.rms_norm_eps == found.config.norm_eps
    assert config.tie_word_embeddings
    assert found.config.tie_embeddings


def continuation(model: transformers.LlamaForCausalLM, ids: list[int]) -> tuple[list[int], float]:
    """NEW greedy tokens, and the smallest gap to the second best logit. Stops at nothing."""
    new: list[int] = []
    gaps: list[float] = []
    for _ in range(NEW):
        with torch.no_grad():
            logits = model(torch.tensor([ids + new])).logits[0, -1]
        best = torch.topk(logits, 2)
        new.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
    return new, min(gaps)


def main() -> None:
    file = default_lm_file()
    model = transformers.LlamaForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    check_weights(model, file)
    tokenizer = published_tokenizer(file)
    rows = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        new, gap = continuation(model, ids)
        rows.append({"prompt": prompt, "ids": ids, "new": new, "gap": round(gap, 5)})
        print(gap, repr(tokenizer.decode(new, skip_special_tokens=False)))
    with torch.no_grad():
        logits = model(torch.tensor([rows[0]["ids"]])).logits[0, -1]
    top = torch.topk(logits, 20)
    values = {
        "rows": rows,
        "top_ids": top.indices.tolist(),
        "top_logits": [round(x, 5) for x in top.values.tolist()],
    }
    out = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "smollm2.json"
    out.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
