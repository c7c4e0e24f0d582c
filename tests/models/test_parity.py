"""Live comparison with transformers' torch models (`make parity`; needs torch)."""

import json

import numpy as np
import pytest

from moe_jax.models import encode, pretrained, tokenizer
from tests.models import small_encoders

pytestmark = [
    pytest.mark.parity,
    # Deprecations inside torch and transformers are not ours to mend.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TEXTS = ("a b c", "abcde fab a b c d e", "j", "a", "b c d e f g h i j a b c d")


def torch_model(config):
    """A random torch model of a config, its Linear weights made larger."""
    import torch
    import transformers

    kinds = {
        "bert": transformers.BertModel,
        "distilbert": transformers.DistilBertModel,
        "roberta": transformers.RobertaModel,
        "xlm-roberta": transformers.XLMRobertaModel,
    }
    kind = kinds[config["model_type"]]
    settings = {k: v for k, v in config.items() if k != "model_type"}
    torch.manual_seed(0)
    model = kind(kind.config_class(**settings, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
    return model


def random_config(name, seed):
    """The small config of an architecture with other sizes."""
    random = np.random.RandomState(seed)
    config = dict(small_encoders.CONFIGS[name])
    heads, per_head = random.randint(1, 6), 4 * random.randint(1, 5)
    sizes = (heads * per_head, heads, random.randint(1, 4), random.randint(8, 70))
    keys = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
    if config["model_type"] == "distilbert":
        keys = ("dim", "n_heads", "n_layers", "hidden_dim")
    return config | {k: int(v) for k, v in zip(keys, sizes, strict=True)}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", small_encoders.CONFIGS)
def test_random_models_of_every_architecture(name, seed, tmp_path):
    import torch

    config = random_config(name, seed)
    theirs = torch_model(config)
    weights = {k: v.numpy() for k, v in theirs.state_dict().items()}
    ours = pretrained.load_encoder(str(small_encoders.write(tmp_path, config, weights)))
    pieces = encode.tokenise(ours.tokenizer, TEXTS)
    rows = [[2, *ids, 3] for ids in pieces.ids]
    ids_bs = np.full((len(rows), max(map(len, rows))), config["pad_token_id"])
    where_bs = np.zeros(ids_bs.shape, bool)
    for i, row in enumerate(rows):
        # RoBERTa's code takes its padding id for padding wherever it stands.
        assert config["pad_token_id"] not in row
        ids_bs[i, : len(row)], where_bs[i, : len(row)] = row, True
    with torch.no_grad():
        out = theirs(
            input_ids=torch.from_numpy(ids_bs),
            attention_mask=torch.from_numpy(where_bs).long(),
            output_hidden_states=True,
        ).hidden_states
    for layer, hidden in enumerate(out):
        found = encode.token_states(ours, pieces, layer=layer)
        for i, states in enumerate(found):
            wanted = hidden[i, 1 : 1 + len(states)].numpy()
            np.testing.assert_allclose(states, wanted, atol=1e-5)


@pytest.fixture(scope="module")
def original():
    """The embedded encoder's folder, and transformers' tokenizer and model of it."""
    import transformers

    folder = pretrained.find_folder(pretrained.DEFAULT_ENCODER)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    return folder, transformers.AutoTokenizer.from_pretrained(folder), model


WORDS = (
    "Which experts did the router choose, and why? It chose 3 of 64.",
    "Ünïcode ﬁnds its way: 東京 😀 \u200bzero\tand\ntabs",
    "x",
    "",
    "lorem ipsum dolor " * 60,
)


def test_the_real_encoder(minilm, original):
    import torch

    _, their_tokenizer, model = original
    pieces = encode.tokenise(minilm.tokenizer, WORDS)
    states = encode.token_states(minilm, pieces)
    vectors = encode.sentence_embeddings(minilm, WORDS)
    worst = 0.0
    for i, text in enumerate(WORDS):
        inputs = their_tokenizer(text, return_tensors="pt")
        assert inputs["input_ids"][0, 1:-1].tolist() == pieces.ids[i].tolist()
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state[0]
        mean = hidden.mean(dim=0)
        np.testing.assert_allclose(states[i], hidden[1:-1].numpy(), atol=1e-5)
        np.testing.assert_allclose(vectors[i], (mean / mean.norm()).numpy(), atol=1e-5)
        worst = max(worst, float(np.abs(vectors[i] - (mean / mean.norm()).numpy()).max()))
    print(f"sentence embeddings: largest difference {worst:.1e}")


def test_wordpiece_from_the_vocabulary_alone(minilm, original, tmp_path):
    folder, their_tokenizer, _ = original
    for name in ("vocab.txt", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    built = tokenizer.read_tokenizer(tmp_path)
    assert tokenizer.special_ids(built) == tokenizer.special_ids(minilm.tokenizer)
    for text in WORDS:
        theirs = their_tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        ours = encode.tokenise(built, [text])
        assert ours.ids[0].tolist() == theirs["input_ids"]
        assert [tuple(o) for o in ours.offsets[0].tolist()] == theirs["offset_mapping"]


@pytest.mark.parametrize("prefix_space", [False, True])
def test_byte_level_from_vocabulary_and_merges(prefix_space, tmp_path):
    import tokenizers
    import transformers

    trained = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator([*WORDS, *TEXTS], vocab_size=330, special_tokens=special)
    trained.save_model(str(tmp_path))
    options = {"add_prefix_space": prefix_space, "tokenizer_class": "RobertaTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    theirs = transformers.RobertaTokenizer.from_pretrained(tmp_path)
    built = tokenizer.read_tokenizer(tmp_path)
    for text in (*WORDS, "a  b\n c <mask>"):
        wanted = theirs(text, return_offsets_mapping=True)
        ours = built.encode(text)
        assert ours.ids == wanted["input_ids"]
        assert ours.offsets == wanted["offset_mapping"]
