"""The assessment as a whole: a model with known mistakes, corners, storage, bad input."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_jax.rationale import TextRationale, assess, flat, metrics
from moe_jax.rationale.assess import from_json, to_json

LABELS = ["cheese", "volcanoes", "airlines"]


def make(rng, num_texts, *, num_factors=4, right=0.8, labelled=True):
    """Texts of two fragments; factor = label + 1 for most tokens, else any factor."""
    texts, states = [], []
    centres = np.eye(8)[:3] * 3
    for _ in range(num_texts):
        size = rng.integers(4, 9)
        gold = np.repeat(rng.permutation(3)[:2], size)
        factor = np.where(
            rng.random(gold.size) < right, gold + 1, rng.integers(0, num_factors, gold.size)
        )
        logits = np.eye(num_factors)[factor % num_factors] * 3
        probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        offsets = np.stack([np.arange(gold.size) * 3, np.arange(gold.size) * 3 + 2], axis=1)
        text = " ".join(f"{'xyz'[g]}{rng.integers(0, 4)}" for g in gold)
        labels = gold if labelled else None
        texts.append(TextRationale(text, offsets, probs.astype(np.float32), labels))
        states.append((centres[gold] + rng.normal(size=(gold.size, 8))).astype(np.float32))
    return texts, states


def half(masks):
    """Cosine = share of the tokens kept."""
    return np.array([m.mean() for m in masks])


@pytest.fixture(scope="module")
def case():
    """Training and test texts with their states, and their assessment."""
    rng = np.random.default_rng(0)
    train, train_states = make(rng, 60)
    test, test_states = make(rng, 30)
    states = {"train_states": train_states, "test_states": test_states}
    found = assess(train, test, LABELS, **states, score=half, num_samples=5, num_scored=10)
    return train, test, states, found


class TestWhole:
    def test_model_scores_are_those_of_the_map_learned_on_train(self, case):
        _, test, _, found = case
        assert found.mapping.tolist() == [-1, 0, 1, 2]
        assigned = np.concatenate([t.probs.argmax(1) for t in test])
        gold = np.concatenate([t.labels for t in test])
        want = metrics.score_labels(found.mapping[assigned], gold, 3)
        model = found.methods[0]
        assert model.one_to_one.macro_f1 == want.macro_f1
        np.testing.assert_array_equal(model.one_to_one.support, want.support)
        np.testing.assert_allclose(found.usage, np.bincount(assigned) / assigned.size)

    def test_methods_and_their_order(self, case):
        *_, found = case
        assert [m.name for m in found.methods] == ["model", "majority", "random", "k-means", "NMF"]
        f1 = {m.name: m.one_to_one.macro_f1 for m in found.methods}
        assert f1["model"] > 0.75
        assert f1["model"] > f1["random"] + 0.2
        assert f1["k-means"] > 0.5
        majority = found.methods[1].one_to_one
        assert sorted(majority.recall) == [0, 0, 1]
        assert found.methods[1].ami == 0.0

    def test_monitors_words_samples_faithfulness(self, case):
        _, test, _, found = case
        assert found.monitors["macro_f1_low"] <= found.methods[0].one_to_one.macro_f1
        assert found.monitors["macro_f1_high"] >= found.methods[0].one_to_one.macro_f1
        assert 1 <= found.monitors["usage_perplexity"] <= 4
        assert found.rationale_scores["token_micro_f1_corrected"] > 0.7
        assert len(found.top_words) == 4
        for factor, letter in ((1, "x"), (2, "y"), (3, "z")):
            assert found.top_words[factor]
            assert all(word[0] == letter for word, _ in found.top_words[factor])
        assert len(found.samples) == 5
        assert all(any(s is t for t in test) for s in found.samples)
        # A model that only counts tokens cannot tell a factor's tokens from random ones.
        assert found.faithfulness["comprehensiveness_corrected"] == pytest.approx(0, abs=1e-12)

    def test_flat_is_finite_floats(self, case):
        *_, found = case
        figures = flat(found)
        assert all(type(v) is float and math.isfinite(v) for v in figures.values())
        for name in (
            "model/macro_f1",
            "k-means/ami",
            "random/many_to_one_f1",
            "monitors/dead_factors",
            "eraser/iou_f1_corrected",
            "faithfulness/sufficiency_aopc_compat",
        ):
            assert name in figures

    def test_same_seed_same_figures(self, case):
        train, test, states, found = case
        again = assess(train, test, LABELS, **states, score=half, num_samples=5, num_scored=10)
        assert to_json(again) == to_json(found)

    def test_json_round_trip(self, case):
        *_, found = case
        stored = json.dumps(to_json(found), allow_nan=False)
        back = from_json(json.loads(stored))
        assert to_json(back) == to_json(found)
        assert flat(back) == flat(found)
        np.testing.assert_array_equal(back.samples[0].probs, found.samples[0].probs)
        assert back.samples[0].text == found.samples[0].text
        assert back.top_words == found.top_words

    @settings(max_examples=8, deadline=None)
    @given(st.permutations(range(4)))
    def test_factor_names_do_not_matter(self, case, order):
        train, test, _, found = case
        renamed = [[t._replace(probs=t.probs[:, order]) for t in part] for part in (train, test)]
        other = assess(*renamed, LABELS)
        assert other.mapping.tolist() == found.mapping[list(order)].tolist()
        np.testing.assert_allclose(other.usage, found.usage[list(order)])
        assert other.methods[0].one_to_one.macro_f1 == found.methods[0].one_to_one.macro_f1
        assert other.methods[0].ami == pytest.approx(found.methods[0].ami, abs=1e-12)
        assert other.rationale_scores == pytest.approx(found.rationale_scores, abs=1e-6)
        assert other.top_words == [found.top_words[k] for k in order]


class TestCorners:
    def test_without_gold_labels(self):
        rng = np.random.default_rng(1)
        train, train_states = make(rng, 8, labelled=False)
        test, test_states = make(rng, 4, labelled=False)
        states = {"train_states": train_states, "test_states": test_states}
        found = assess(train, test, [], **states, score=half)
        assert found.methods == []
        assert found.rationale_scores == {}
        assert found.mapping.tolist() == [-1] * 4
        assert found.usage.sum() == pytest.approx(1)
        assert found.monitors["usage_perplexity"] > 1
        assert found.faithfulness
        assert len(found.samples) == 4
        assert to_json(from_json(json.loads(json.dumps(to_json(found))))) == to_json(found)

    def test_empty_test_part(self):
        train, states = make(np.random.default_rng(2), 6)
        found = assess(train, [], LABELS, train_states=states, test_states=[], score=half)
        assert found.methods == []
        assert found.faithfulness == {}
        assert found.samples == []
        assert found.mapping.tolist() == [-1, 0, 1, 2]
        assert found.usage.tolist() == [0.0] * 4
        assert all(math.isfinite(v) for v in flat(found).values())

    def test_empty_train_part(self):
        test, _ = make(np.random.default_rng(3), 3)
        found = assess([], test, LABELS)
        assert found.methods == []
        assert found.mapping.tolist() == [-1] * 4

    def test_one_factor(self):
        rng = np.random.default_rng(4)
        (train, train_states), (test, test_states) = (make(rng, 6, num_factors=1) for _ in "ab")
        states = {"train_states": train_states, "test_states": test_states}
        found = assess(train, test, LABELS, **states, score=half)
        model, majority = found.methods[:2]
        assert model.one_to_one.macro_f1 == majority.one_to_one.macro_f1
        assert found.monitors["usage_perplexity"] == pytest.approx(1)
        assert all(math.isfinite(v) for v in flat(found).values())

    def test_one_token(self):
        one = TextRationale("a", np.array([[0, 1]]), np.array([[0.3, 0.7]]), np.array([0]))
        states = [np.ones((1, 3), np.float32)]
        found = assess([one], [one], ["a"], train_states=states, test_states=states, score=half)
        assert found.methods[0].one_to_one.macro_f1 == 1.0
        assert found.mapping.tolist() == [-1, 0]
        assert all(math.isfinite(v) for v in flat(found).values())

    def test_label_absent_from_train_and_factor_unused(self):
        rng = np.random.default_rng(5)
        train, _ = make(rng, 20)
        test, _ = make(rng, 20)
        train = [t._replace(labels=np.where(t.labels == 2, -1, t.labels)) for t in train]
        found = assess(train, test, LABELS)
        assert 2 not in found.mapping.tolist()
        scores = found.methods[0].one_to_one
        assert scores.f1[2] == 0.0
        assert scores.support[2] > 0  # its tokens count as missed
        assert scores.macro_f1 == pytest.approx(scores.f1.mean())

    def test_text_without_tokens(self):
        rng = np.random.default_rng(6)
        train, _ = make(rng, 5)
        empty = TextRationale(
            "", np.zeros((0, 2), int), np.zeros((0, 4), np.float32), np.zeros(0, int)
        )
        found = assess(
            train, [empty, *train], LABELS, score=lambda m: np.array([x.size for x in m])
        )
        assert all(math.isfinite(v) for v in flat(found).values())
        assert to_json(from_json(to_json(found))) == to_json(found)

    def test_without_states_two_baselines_are_left_out(self, case):
        train, test, *_ = case
        found = assess(train, test, LABELS)
        assert [m.name for m in found.methods] == ["model", "majority", "random"]
        assert found.faithfulness == {}


class TestBadInput:
    @pytest.fixture
    def parts(self):
        return make(np.random.default_rng(7), 4)

    def test_nothing(self):
        with pytest.raises(ValueError, match="train and test are both empty"):
            assess([], [], LABELS)

    def test_other_number_of_factors(self, parts):
        texts, _ = parts
        odd = texts[1]._replace(probs=texts[1].probs[:, :2])
        with pytest.raises(ValueError, match=r"test\[1\]\.probs has shape .* 4 factors"):
            assess(texts, [texts[0], odd], LABELS)

    def test_values(self, parts):
        texts, _ = parts
        bad = texts[0]._replace(probs=texts[0].probs * np.float32(np.nan))
        with pytest.raises(ValueError, match=r"train\[0\]\.probs .* not finite"):
            assess([bad], texts, LABELS)

    def test_labels(self, parts):
        texts, _ = parts
        with pytest.raises(ValueError, match=r"with 2 label names it must lie in -1\.\.1"):
            assess(texts, texts, LABELS[:2])
        short = texts[0]._replace(labels=texts[0].labels[:-1])
        with pytest.raises(ValueError, match=r"test\[0\]\.labels has \d+ labels for \d+ tokens"):
            assess(texts, [short], LABELS)

    def test_states(self, parts):
        texts, states = parts
        with pytest.raises(ValueError, match=r"test_states has \d+ tokens; the texts have \d+"):
            assess(texts, texts, LABELS, train_states=states, test_states=states[1:])

    def test_not_a_number_is_not_stored(self, case):
        *_, found = case
        found.monitors["broken"] = math.nan
        try:
            with pytest.raises(ValueError, match="nan"):
                to_json(found)
        finally:
            del found.monitors["broken"]
