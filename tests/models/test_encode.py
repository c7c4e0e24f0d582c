"""Token states and sentence embeddings: right values, right places, nothing truncated."""

import pathlib

import numpy as np
import pytest

from moe_jax.errors import UserError
from moe_jax.models import encode
from tests.models import small_encoders

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "encoder.npz"
TEXTS = ["a b c d e", "", "j", "abcde fgh ij " * 3, "c b a"]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as values:
        return {name: values[name] for name in ("texts", "embeddings", "first_states")}


def test_minilm_sentence_embeddings_are_those_of_the_original_code(minilm, golden):
    found = encode.sentence_embeddings(minilm, [str(text) for text in golden["texts"]])
    np.testing.assert_allclose(found, golden["embeddings"], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)
    # Not all the same vector.
    assert (found @ found.T)[~np.eye(len(found), dtype=bool)].max() < 0.9


def test_minilm_token_states_are_those_of_the_original_code(minilm, golden):
    text = str(golden["texts"][0])
    (found,) = encode.token_states(minilm, encode.tokenise(minilm.tokenizer, [text]))
    np.testing.assert_allclose(found, golden["first_states"], atol=1e-5)


def test_offsets_reproduce_the_text(minilm):
    texts = ["Routing is one idea.", "Ça  va? 東京\t😀 naïve", "", "  ", "un" * 60]
    pieces = encode.tokenise(minilm.tokenizer, texts)
    plain = {"ç": "c", "ï": "i"}
    for text, ids, offsets in zip(texts, pieces.ids, pieces.offsets, strict=True):
        assert ids.dtype == np.int32
        assert offsets.shape == (len(ids), 2)
        assert (offsets[1:, 0] >= offsets[:-1, 1]).all()
        covered = "".join(text[start:stop] for start, stop in offsets)
        assert covered == "".join(text.split())
        for token, (start, stop) in zip(ids, offsets, strict=True):
            word = minilm.tokenizer.id_to_token(int(token)).removeprefix("##")
            there = "".join(plain.get(c, c) for c in text[start:stop].lower())
            assert word in (there, "[UNK]")
    assert [len(ids) for ids in pieces.ids][2:4] == [0, 0]


def test_one_text_is_the_same_alone_and_in_a_batch(small):
    together = encode.token_states(small, encode.tokenise(small.tokenizer, TEXTS * 9))
    vectors = encode.sentence_embeddings(small, TEXTS * 9)
    for index, text in enumerate(TEXTS):
        (alone,) = encode.token_states(small, encode.tokenise(small.tokenizer, [text]))
        for copy in together[index :: len(TEXTS)]:
            np.testing.assert_allclose(copy, alone, atol=1e-5)
        np.testing.assert_allclose(
            vectors[index], encode.sentence_embeddings(small, [text])[0], atol=1e-5
        )


def test_states_are_the_models_own_without_special_tokens(small):
    pieces = encode.tokenise(small.tokenizer, TEXTS)
    for ids, states in zip(pieces.ids, encode.token_states(small, pieces), strict=True):
        wanted = small_encoders.states(small, [2, *ids, 3])[1:-1]
        assert states.dtype == np.float32
        np.testing.assert_allclose(states, wanted, atol=1e-5)


def test_layers_are_chosen_and_averaged(small):
    pieces = encode.tokenise(small.tokenizer, TEXTS)
    each = [encode.token_states(small, pieces, layer=layer) for layer in (0, 1, 2)]
    for name, wanted in {(-1): each[2], (-3): each[0], 1: each[1]}.items():
        for ours, theirs in zip(
            encode.token_states(small, pieces, layer=name), wanted, strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    mean = encode.token_states(small, pieces, layer=(1, -1))
    for ours, one, two in zip(mean, each[1], each[2], strict=True):
        np.testing.assert_allclose(ours, (one + two) / 2, atol=1e-6)
    # Embeddings don't know the context, later layers do.
    a = encode.tokenise(small.tokenizer, ["a b", "a j"])
    first, second = encode.token_states(small, a, layer=0)
    np.testing.assert_allclose(first[0], second[0], atol=1e-6)
    first, second = encode.token_states(small, a)
    assert np.abs(first[0] - second[0]).max() > 0.01


def test_a_long_text_is_read_in_windows_by_the_most_central_one(small):
    text = " ".join("abcdefghij"[i * i % 10] for i in range(61))
    pieces = encode.tokenise(small.tokenizer, ["a", text, "b c"])
    ids, offsets = pieces.ids[1], pieces.offsets[1]
    assert [text[a:b] for a, b in offsets] == text.split()
    found = encode.token_states(small, pieces)[1]
    assert found.shape == (61, 24)
    # 24 positions less 2 special tokens: windows of 22, one every 11 tokens, the last at 61 - 22.
    starts = [0, 11, 22, 33, 39]
    for place in range(61):
        start = min(starts, key=lambda s: (abs(place - (s + 10.5)), s))
        window = small_encoders.states(small, [2, *ids[start : start + 22], 3])
        wanted = window[1 + place - start]
        np.testing.assert_allclose(found[place], wanted, atol=1e-5)


def test_the_embedding_of_a_long_text_is_the_mean_of_its_windows_means(small):
    text = " ".join("abcdefghij"[i * i % 10] for i in range(40))
    (ids,) = encode.tokenise(small.tokenizer, [text]).ids
    means = []
    for start in (0, 11, 18):
        means.append(small_encoders.states(small, [2, *ids[start : start + 22], 3]).mean(axis=0))
    mean = np.mean(means, axis=0)
    found = encode.sentence_embeddings(small, [text])[0]
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-5)


def test_nothing_to_do(small):
    assert encode.token_states(small, encode.tokenise(small.tokenizer, [])) == []
    assert encode.sentence_embeddings(small, []).shape == (0, 24)
    (states,) = encode.token_states(small, encode.tokenise(small.tokenizer, [""]))
    assert states.shape == (0, 24)
    assert np.isfinite(encode.sentence_embeddings(small, [""])).all()


def test_progress_goes_up_to_all_tokens(small):
    pieces = encode.tokenise(small.tokenizer, ["a b c d e f g h i j"] * 300)
    calls = []
    encode.token_states(small, pieces, progress=lambda done, total: calls.append((done, total)))
    assert len(calls) > 1
    assert calls == sorted(calls)
    assert {total for _, total in calls} == {3000}
    assert calls[-1] == (3000, 3000)
    calls.clear()
    encode.sentence_embeddings(small, ["a b"], progress=lambda *call: calls.append(call))
    assert calls == [(2, 2)]


def test_other_texts_of_similar_size_need_no_new_program(small):
    random = np.random.RandomState(0)

    def some_texts():
        lengths = random.randint(3, 20, 150)
        return [" ".join("abcdefghij"[i % 10] for i in range(n)) for n in lengths]

    pieces = encode.tokenise(small.tokenizer, some_texts())
    before = encode._encode._cache_size()
    encode.token_states(small, pieces)
    compiled = encode._encode._cache_size()
    assert compiled <= before + 1
    for _ in range(3):
        encode.token_states(small, encode.tokenise(small.tokenizer, some_texts()))
        encode.sentence_embeddings(small, some_texts())
    assert encode._encode._cache_size() == compiled


@pytest.mark.parametrize("layer, words", [(3, "layer=3 "), ((1, -4), "layer=-4 "), ((), "layer=")])
def test_a_layer_that_is_not_there(small, layer, words):
    with pytest.raises(UserError, match=words):
        encode.token_states(small, encode.tokenise(small.tokenizer, ["a"]), layer=layer)


def test_bad_texts_and_ids(small):
    with pytest.raises(UserError, match="a list of strings"):
        encode.tokenise(small.tokenizer, "one text")
    pieces = encode.Tokenised([np.array([40], np.int32)], [np.array([[0, 1]], np.int32)])
    with pytest.raises(UserError, match="text 0 has token ids outside 0 to 39"):
        encode.token_states(small, pieces)


@pytest.mark.parametrize("call", [encode.tokenise, encode.sentence_embeddings])
def test_half_of_a_surrogate_pair_is_named(minilm, call):
    made = minilm.tokenizer if call is encode.tokenise else minilm
    with pytest.raises(UserError, match=r"^text 1, character 3: '.ud83d' is half of a surrogate"):
        call(made, ["a", "b \ud83d", "c"])
