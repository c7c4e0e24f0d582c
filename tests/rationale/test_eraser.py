"""ERASER's measures against its own program (golden file), scikit-learn and hand-worked values."""

import json
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, precision_recall_curve

from moe_jax.rationale import TextRationale, eraser

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "eraser.json"


def mask(size, *spans):
    """Tokens inside the spans."""
    where = np.zeros(size, bool)
    for a, b in spans:
        where[a:b] = True
    return where


def text(labels, probs):
    """A text of one-letter tokens."""
    size = len(labels)
    offsets = np.stack([np.arange(size) * 2, np.arange(size) * 2 + 1], axis=1)
    return TextRationale(
        " ".join("a" * size), offsets, np.asarray(probs, np.float32), np.asarray(labels, int)
    )


def sharp(factors, num_factors):
    """Probabilities that give each token to one factor."""
    return np.eye(num_factors)[np.asarray(factors, int)]


@pytest.fixture(scope="module")
def golden():
    """Instances, and what ERASER's program says of them (scripts/make_golden_eraser.py)."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def masks(golden):
    """Gold and predicted tokens of the golden instances."""
    parts = golden["instances"]
    return [[mask(p["size"], *p[side]) for p in parts] for side in ("gold", "predicted")]


class TestAgainstTheProgram:
    def test_tokens(self, golden, masks):
        got, want = eraser.token_f1(*masks), golden["expected"]["token"]
        for ours, theirs in (("precision", "p"), ("recall", "r"), ("f1", "f1")):
            assert got[ours] == pytest.approx(want["instance_macro"][theirs], abs=1e-12)
            assert got[f"micro_{ours}"] == pytest.approx(want["instance_micro"][theirs], abs=1e-12)

    def test_spans(self, golden):
        parts, want = golden["instances"], golden["expected"]["iou"]
        spans = [[[tuple(s) for s in p[side]] for p in parts] for side in ("gold", "predicted")]
        got = eraser.iou_f1_compat(*spans)
        for ours, theirs in (("precision", "p"), ("recall", "r"), ("f1", "f1")):
            assert got[ours] == pytest.approx(want["macro"][theirs], abs=1e-12)
        assert got["micro_f1"] == pytest.approx(want["micro"]["f1"], abs=1e-12)

    def test_soft_scores(self, golden, masks):
        scores = [np.array(p["scores"]) for p in golden["instances"]]
        want = golden["expected"]["soft"]
        assert eraser.auprc_compat(masks[0], scores) == pytest.approx(want["auprc"], abs=1e-12)
        ap = eraser.auprc_corrected(masks[0], scores)
        assert ap == pytest.approx(want["average_precision"], abs=1e-12)


class TestTokens:
    def test_by_hand(self):
        got = eraser.token_f1(
            [mask(6, (0, 4)), mask(4, (0, 1))], [mask(6, (2, 6)), mask(4, (0, 2))]
        )
        assert got["precision"] == pytest.approx((2 / 4 + 1 / 2) / 2)
        assert got["recall"] == pytest.approx((2 / 4 + 1) / 2)
        assert got["f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
        assert got["micro_precision"] == pytest.approx(3 / 6)
        assert got["micro_recall"] == pytest.approx(3 / 5)
        assert got["micro_f1"] == pytest.approx(6 / 11)

    @pytest.mark.parametrize(
        "gold, predicted", [([], []), ([mask(3, (0, 2))], [mask(3)]), ([mask(3)], [mask(3)])]
    )
    def test_nothing_there_is_zero(self, gold, predicted):
        assert set(eraser.token_f1(gold, predicted).values()) == {0.0}

    def test_bad_input(self):
        with pytest.raises(ValueError, match="gold has 3 tokens but predicted has 2"):
            eraser.token_f1([mask(3)], [mask(2)])


class TestSpans:
    def test_runs(self):
        assert eraser.runs(mask(6, (0, 2), (3, 4), (5, 6))) == [(0, 2), (3, 4), (5, 6)]
        assert eraser.runs(mask(3)) == []
        assert eraser.runs(mask(0)) == []
        assert eraser.runs(mask(2, (0, 2))) == [(0, 2)]

    def test_the_known_defect_and_its_correction(self):
        gold, predicted = [[(0, 4)]], [[(0, 2), (2, 4)]]
        compat = eraser.iou_f1_compat(gold, predicted)
        assert (compat["precision"], compat["recall"]) == (1.0, 2.0)
        assert compat["f1"] == pytest.approx(4 / 3)
        corrected = eraser.iou_f1_corrected(gold, predicted)
        assert (corrected["precision"], corrected["recall"]) == (0.5, 1.0)
        assert corrected["f1"] == pytest.approx(2 / 3)

    def test_matching_is_not_greedy(self):
        # [0,6) overlaps both gold spans enough at 0.3, [0,3) only the first: both can be served.
        gold, predicted = [[(0, 3), (3, 6)]], [[(0, 6), (0, 3)]]
        assert eraser.iou_f1_corrected(gold, predicted, threshold=0.3)["f1"] == 1.0

    def test_threshold_is_inclusive(self):
        for measure in (eraser.iou_f1_compat, eraser.iou_f1_corrected):
            assert measure([[(0, 4)]], [[(0, 2)]])["f1"] == 1.0
            assert measure([[(0, 5)]], [[(0, 2)]])["f1"] == 0.0

    @pytest.mark.parametrize("measure", [eraser.iou_f1_compat, eraser.iou_f1_corrected])
    def test_empty_sides_are_zero(self, measure):
        for gold, predicted in (([], []), ([[]], [[]]), ([[(0, 2)]], [[]]), ([[]], [[(0, 2)]])):
            assert set(measure(gold, predicted).values()) == {0.0}


class TestAuprc:
    def test_constant_scores(self):
        gold, scores = [mask(4, (0, 2))], [np.full(4, 0.3)]
        assert eraser.auprc_compat(gold, scores) == pytest.approx(0.75)
        assert eraser.auprc_corrected(gold, scores) == pytest.approx(0.50)

    def test_single_class_texts(self):
        gold = [mask(3, (0, 3)), mask(4, (0, 2))]
        scores = [np.array([0.1, 0.5, 0.2]), np.full(4, 0.3)]
        assert eraser.auprc_compat(gold, scores) == pytest.approx((1 + 0.75) / 2)
        assert eraser.auprc_corrected(gold, scores) == pytest.approx(0.50)
        assert eraser.auprc_compat([mask(3)], scores[:1]) == 0.0
        assert eraser.auprc_corrected(gold[:1], scores[:1]) == 0.0

    @settings(max_examples=80, deadline=None)
    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=25))
    def test_agrees_with_scikit_learn(self, tokens):
        gold = np.array([g for g, _ in tokens])
        scores = np.array([s / 5 for _, s in tokens])
        if gold.any():
            precision, recall, _ = precision_recall_curve(gold, scores)
            got = eraser.auprc_compat([gold], [scores])
            assert got == pytest.approx(auc(recall, precision), abs=1e-12)
        if gold.any() and not gold.all():
            got = eraser.auprc_corrected([gold], [scores])
            assert got == pytest.approx(average_precision_score(gold, scores), abs=1e-12)


class TestRationaleScores:
    def test_perfect(self):
        labels = [0, 0, 1, 1, 1, 0]
        # Factor 2 stands for label 0, factor 0 for label 1.
        rationale = text(labels, sharp([2, 2, 0, 0, 0, 2], 3))
        got = eraser.rationale_scores([rationale], np.array([1, -1, 0]))
        assert set(got.values()) == {1.0}
        assert len(got) == 22

    def test_names_come_in_pairs(self):
        got = eraser.rationale_scores([], np.array([0]))
        bases = {n.removesuffix("_compat") for n in got if n.endswith("_compat")}
        assert bases == {n.removesuffix("_corrected") for n in got if n.endswith("_corrected")}
        assert len(got) == 2 * len(bases)
        assert set(got.values()) == {0.0}

    def test_by_hand(self):
        # gold 0 0 0 0, predicted 0 1 0 0: label 0 has P 1, R 3/4; label 1 was predicted once.
        rationale = text([0, 0, 0, 0], sharp([0, 1, 0, 0], 2))
        got = eraser.rationale_scores([rationale], np.array([0, 1]))
        assert got["token_precision_corrected"] == pytest.approx(1 / 2)
        assert got["token_recall_corrected"] == pytest.approx((3 / 4) / 2)
        assert got["token_f1_corrected"] == pytest.approx((6 / 7) / 2)
        assert got["token_micro_precision_corrected"] == pytest.approx(3 / 4)
        # Of the spans [0,1) and [2,4) of label 0 the second has IoU 1/2 with [0,4).
        assert got["iou_recall_compat"] == 1.0
        assert got["iou_precision_compat"] == pytest.approx((1 / 2 + 0) / 2)
        assert got["iou_precision_corrected"] == pytest.approx((1 / 2 + 0) / 2)
        assert got["iou_recall_corrected"] == pytest.approx((1 + 0) / 2)

    def test_unlabelled_tokens_count_in_compat_only(self):
        rationale = text([0, 0, -1, -1], sharp([0, 0, 0, 0], 1))
        got = eraser.rationale_scores([rationale], np.array([0]))
        assert got["token_precision_compat"] == 0.5
        assert got["token_precision_corrected"] == 1.0
        assert got["auprc_compat"] == pytest.approx(0.75)
        assert got["iou_f1_corrected"] == 1.0

    def test_texts_without_labels_are_left_out(self):
        known = text([0, 1], sharp([0, 1], 2))
        bare = known._replace(labels=None)
        nothing = known._replace(labels=np.array([-1, -1]))
        mapping = np.array([0, 1])
        one = eraser.rationale_scores([known], mapping)
        assert eraser.rationale_scores([bare, known, nothing], mapping) == one

    def test_factors_without_labels_predict_nothing(self):
        got = eraser.rationale_scores([text([0, 1], sharp([0, 1], 2))], np.array([-1, -1]))
        assert got["token_f1_compat"] == got["iou_f1_corrected"] == 0.0
        assert got["auprc_corrected"] == 0.5

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32 - 1))
    def test_bounds_and_renaming(self, seed):
        rng = np.random.default_rng(seed)
        num_factors, num_labels = rng.integers(1, 5, 2)
        texts = []
        for _ in range(4):
            size = int(rng.integers(1, 12))
            labels = rng.integers(-1, num_labels, size)
            texts.append(text(labels, rng.dirichlet(np.ones(num_factors), size)))
        mapping = rng.integers(-1, num_labels, num_factors)
        got = eraser.rationale_scores(texts, mapping)
        assert all(math.isfinite(v) and v >= 0 for v in got.values())
        assert all(v <= 1 + 1e-12 for n, v in got.items() if n.endswith("_corrected"))
        order = rng.permutation(num_factors)
        other = [t._replace(probs=t.probs[:, order]) for t in texts]
        renamed = eraser.rationale_scores(other, mapping[order])
        assert renamed == pytest.approx(got, abs=1e-12)
