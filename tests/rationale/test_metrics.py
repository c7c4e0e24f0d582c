"""Maps, label scores, monitors and partition measures against scikit-learn and hand-worked values."""

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from moe_jax.rationale import metrics

ints = np.array


@st.composite
def assignments(draw):
    """Assigned factors, gold labels (-1 for some) and the two sizes."""
    num_factors, num_labels = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    size = draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    assigned = rng.integers(0, num_factors, size)
    gold = rng.integers(-1, num_labels, size)
    return assigned, gold, num_factors, num_labels


class TestContingency:
    def test_counts_pairs_and_leaves_unlabelled_out(self):
        counts = metrics.contingency(
            ints([0, 0, 1, 2, 2]), ints([1, -1, 0, 1, 1]), num_factors=4, num_labels=2
        )
        np.testing.assert_array_equal(counts, [[0, 1], [1, 0], [0, 2], [0, 0]])

    def test_no_tokens_and_no_labels(self):
        none = np.zeros(0, int)
        assert metrics.contingency(none, none, num_factors=3, num_labels=2).tolist() == [[0, 0]] * 3
        only = metrics.contingency(ints([1]), ints([-1]), num_factors=2, num_labels=0)
        assert only.shape == (2, 0)

    @pytest.mark.parametrize(
        "assigned, gold, message",
        [
            ([0, 1], [0], "assigned has 2 tokens but gold has 1"),
            ([0, 3], [0, 0], r"assigned holds 0..3; it must lie in 0..2"),
            ([-1, 0], [0, 0], r"assigned holds -1..0"),
            ([0, 0], [0, 2], r"gold holds 0..2; it must lie in -1..1"),
            ([0, 0], [-2, 0], r"gold holds -2..0"),
        ],
    )
    def test_bad_input(self, assigned, gold, message):
        with pytest.raises(ValueError, match=message):
            metrics.contingency(ints(assigned), ints(gold), num_factors=3, num_labels=2)


class TestMaps:
    def test_hungarian_takes_the_best_total_not_the_best_first(self):
        # Greedy would give factor 0 its favourite label 0 (total 10 + 1); the best total is 9 + 8.
        counts = ints([[10, 9], [8, 1]])
        assert metrics.hungarian_map(counts).tolist() == [1, 0]
        assert metrics.many_to_one_map(counts).tolist() == [0, 0]

    def test_factors_without_a_label(self):
        counts = ints([[5, 0], [0, 0], [4, 0], [0, 3]])
        assert metrics.hungarian_map(counts).tolist() == [0, -1, -1, 1]
        assert metrics.many_to_one_map(counts).tolist() == [0, -1, 0, 1]

    def test_no_overlap_is_no_match(self):
        assert metrics.hungarian_map(ints([[3, 0], [2, 0]])).tolist() == [0, -1]

    def test_one_factor_and_more_labels_than_factors(self):
        assert metrics.hungarian_map(ints([[1, 4, 2]])).tolist() == [1]
        assert metrics.many_to_one_map(ints([[1, 4, 2]])).tolist() == [1]

    def test_no_labels(self):
        for learn in (metrics.hungarian_map, metrics.many_to_one_map):
            assert learn(np.zeros((3, 0), int)).tolist() == [-1, -1, -1]

    @settings(max_examples=40, deadline=None)
    @given(assignments())
    def test_hungarian_is_the_best_of_all_maps(self, case):
        assigned, gold, num_factors, num_labels = case
        counts = metrics.contingency(assigned, gold, num_factors=num_factors, num_labels=num_labels)
        mapping = metrics.hungarian_map(counts)
        used = mapping[mapping >= 0]
        assert len(set(used.tolist())) == len(used)
        got = sum(counts[k, label] for k, label in enumerate(mapping) if label >= 0)
        side = max(num_factors, num_labels)
        square = np.zeros((side, side), int)
        square[:num_factors, :num_labels] = counts
        best = max(
            sum(square[k, p[k]] for k in range(side)) for p in itertools.permutations(range(side))
        )
        assert got == best


class TestScoreLabels:
    def test_by_hand(self):
        # gold 0 0 0 1 1 2, predicted 0 0 1 1 -1 -1; label 3 never occurs.
        scores = metrics.score_labels(ints([0, 0, 1, 1, -1, -1]), ints([0, 0, 0, 1, 1, 2]), 4)
        np.testing.assert_allclose(scores.precision, [1, 1 / 2, 0, 0])
        np.testing.assert_allclose(scores.recall, [2 / 3, 1 / 2, 0, 0])
        np.testing.assert_allclose(scores.f1, [4 / 5, 1 / 2, 0, 0])
        assert scores.support.tolist() == [3, 2, 1, 0]
        assert scores.macro_precision == pytest.approx((1 + 1 / 2 + 0) / 3)
        assert scores.macro_recall == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
        assert scores.macro_f1 == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)

    def test_predictions_on_unlabelled_tokens_do_not_count(self):
        bare = metrics.score_labels(ints([0, 1]), ints([0, 1]), 2)
        more = metrics.score_labels(ints([0, 1, 1, 1, 0]), ints([0, 1, -1, -1, -1]), 2)
        for a, b in zip(bare, more, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_label_that_does_not_occur_still_costs_precision_of_nobody(self):
        # Label 1 is predicted but never gold: it is not in the means, the miss is in label 0's.
        scores = metrics.score_labels(ints([0, 1]), ints([0, 0]), 2)
        assert (scores.macro_precision, scores.macro_recall) == (1.0, 0.5)

    @pytest.mark.parametrize("gold", [[], [-1, -1]])
    def test_nothing_labelled(self, gold):
        scores = metrics.score_labels(np.zeros(len(gold), int), ints(gold, int), 2)
        assert scores.macro_f1 == scores.macro_precision == scores.macro_recall == 0.0

    @settings(max_examples=60, deadline=None)
    @given(assignments())
    def test_agrees_with_scikit_learn(self, case):
        predicted, gold, num_predicted, num_labels = case
        predicted = np.where(predicted < num_labels, predicted, -1)
        scores = metrics.score_labels(predicted, gold, num_labels)
        known = gold >= 0
        if known.any():
            expected = sk.precision_recall_fscore_support(
                gold[known], predicted[known], labels=range(num_labels), zero_division=0
            )
            for got, want in zip(scores[:4], expected, strict=True):
                np.testing.assert_allclose(got, want, atol=1e-12)
            present = np.unique(gold[known])
            want = sk.f1_score(
                gold[known], predicted[known], labels=present, average="macro", zero_division=0
            )
            assert scores.macro_f1 == pytest.approx(want)
        assert num_predicted >= 1

    @settings(max_examples=40, deadline=None)
    @given(assignments(), st.randoms(use_true_random=False))
    def test_factor_ids_do_not_matter(self, case, random):
        assigned, gold, num_factors, num_labels = case
        order = list(range(num_factors))
        random.shuffle(order)
        size = {"num_factors": num_factors, "num_labels": num_labels}
        counts = [metrics.contingency(a, gold, **size) for a in (assigned, ints(order)[assigned])]
        np.testing.assert_array_equal(counts[0], counts[1][order])
        many = [metrics.many_to_one_map(c) for c in counts]
        np.testing.assert_array_equal(many[0], many[1][order])
        one = [metrics.hungarian_map(c) for c in counts]
        total = [
            sum(c[k, m] for k, m in enumerate(o) if m >= 0)
            for c, o in zip(counts, one, strict=True)
        ]
        assert total[0] == total[1]  # among equally good maps the choice is free
        for measure in (metrics.adjusted_mutual_information, lambda c: metrics.v_measure(c)[2]):
            assert measure(counts[0]) == pytest.approx(measure(counts[1]), abs=1e-12)

    def test_perfect_assignment_under_any_names(self):
        rng = np.random.default_rng(3)
        gold = rng.integers(0, 5, 200)
        assigned = ints([3, 0, 4, 1, 2])[gold]
        counts = metrics.contingency(assigned, gold, num_factors=5, num_labels=5)
        for learn in (metrics.hungarian_map, metrics.many_to_one_map):
            assert metrics.score_labels(learn(counts)[assigned], gold, 5).macro_f1 == 1.0
        assert metrics.adjusted_mutual_information(counts) == 1.0
        np.testing.assert_allclose(metrics.v_measure(counts), 1.0)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="predicted has 1 tokens but gold has 2"):
            metrics.score_labels(ints([0]), ints([0, 1]), 2)
        with pytest.raises(ValueError, match=r"predicted holds 0..2"):
            metrics.score_labels(ints([0, 2]), ints([0, 1]), 2)


class TestPartitionMeasures:
    @settings(max_examples=60, deadline=None)
    @given(assignments())
    def test_agree_with_scikit_learn(self, case):
        assigned, gold, num_factors, num_labels = case
        known = gold >= 0
        assigned, gold = assigned[known], gold[known]
        counts = metrics.contingency(assigned, gold, num_factors=num_factors, num_labels=num_labels)
        ami = metrics.adjusted_mutual_information(counts)
        if not gold.size:
            assert ami == 0.0
            assert metrics.v_measure(counts) == (0.0, 0.0, 0.0)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # its remark on few tokens per label
            expected = sk.homogeneity_completeness_v_measure(gold, assigned)
            want = sk.adjusted_mutual_info_score(gold, assigned)
        np.testing.assert_allclose(metrics.v_measure(counts), expected, atol=1e-9)
        entropies = [sk.mutual_info_score(x, x) for x in (gold, assigned)]
        chance = metrics._expected_information(counts[:, counts.any(0)][counts.any(1)])
        if sum(entropies) / 2 - chance > 1e-9:  # otherwise 0/0, where theirs is rounding error
            assert ami == pytest.approx(want, abs=1e-7)
        assert -1.0 <= ami <= 1.0 + 1e-12

    def test_large_table(self):
        rng = np.random.default_rng(0)
        gold = rng.integers(0, 12, 60_000)
        assigned = np.where(rng.random(gold.size) < 0.4, gold, rng.integers(0, 12, gold.size))
        counts = metrics.contingency(assigned, gold, num_factors=12, num_labels=12)
        want = sk.adjusted_mutual_info_score(gold, assigned)
        assert metrics.adjusted_mutual_information(counts) == pytest.approx(want, abs=1e-9)

    def test_chance_is_zero_and_one_group_is_zero(self):
        rng = np.random.default_rng(1)
        random = rng.integers(0, 4, (2, 20_000))
        counts = metrics.contingency(*random, num_factors=4, num_labels=4)
        assert abs(metrics.adjusted_mutual_information(counts)) < 1e-3
        assert metrics.adjusted_mutual_information(ints([[5, 7]])) == 0.0
        assert metrics.adjusted_mutual_information(ints([[5], [7]])) == 0.0
        assert metrics.adjusted_mutual_information(ints([[5, 0], [0, 0]])) == 1.0


class TestInterval:
    def test_all_documents_alike_leave_no_doubt(self):
        documents = [ints([0, 0, 1])] * 8
        low, high = metrics.macro_f1_interval(documents, [ints([0, 1, 1])] * 8, 2)
        point = metrics.score_labels(ints([0, 0, 1]), ints([0, 1, 1]), 2).macro_f1
        assert low == pytest.approx(point)
        assert high == pytest.approx(point)

    def test_agrees_with_a_plain_loop(self):
        rng = np.random.default_rng(5)
        gold = [rng.integers(-1, 3, rng.integers(4, 30)) for _ in range(40)]
        predicted = [
            np.where(rng.random(g.size) < 0.6, g, rng.integers(-1, 3, g.size)) for g in gold
        ]
        low, high = metrics.macro_f1_interval(predicted, gold, 3, seed=0)
        values = []
        for _ in range(600):
            draw = rng.integers(0, 40, 40)
            p, g = (np.concatenate([x[i] for i in draw]) for x in (predicted, gold))
            values.append(metrics.score_labels(p, g, 3).macro_f1)
        want = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose([low, high], want, atol=0.015)
        point = metrics.score_labels(np.concatenate(predicted), np.concatenate(gold), 3).macro_f1
        assert low < point < high

    def test_seed_level_and_corners(self):
        rng = np.random.default_rng(2)
        gold = [rng.integers(0, 2, 9) for _ in range(12)]
        predicted = [rng.integers(0, 2, 9) for _ in range(12)]
        first = metrics.macro_f1_interval(predicted, gold, 2, seed=4)
        assert first == metrics.macro_f1_interval(predicted, gold, 2, seed=4)
        inner = metrics.macro_f1_interval(predicted, gold, 2, seed=4, level=0.5)
        assert first[0] < inner[0] < inner[1] < first[1]
        assert metrics.macro_f1_interval([], [], 2) == (0.0, 0.0)
        assert metrics.macro_f1_interval([ints([0])], [ints([-1])], 2) == (0.0, 0.0)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="predicted has 1 documents but gold has 0"):
            metrics.macro_f1_interval([ints([0])], [], 1)
        with pytest.raises(ValueError, match=r"level=1\.5"):
            metrics.macro_f1_interval([], [], 1, level=1.5)


class TestMonitors:
    def test_even_sharp_use(self):
        got = metrics.collapse_monitors(np.tile(np.eye(4), (3, 1)))
        assert got["usage_perplexity"] == pytest.approx(4.0)
        assert (got["dead_factors"], got["max_share"]) == (0.0, 0.25)
        assert (got["token_entropy"], got["relative_entropy"]) == (0.0, 0.0)

    def test_collapse_on_one_factor(self):
        probs = np.zeros((10, 5))
        probs[:, 2] = 1
        got = metrics.collapse_monitors(probs)
        assert got["usage_perplexity"] == pytest.approx(1.0)
        assert (got["dead_factors"], got["max_share"]) == (4.0, 1.0)

    def test_uniform_gate(self):
        got = metrics.collapse_monitors(np.full((7, 3), 1 / 3))
        assert got["usage_perplexity"] == pytest.approx(3.0)
        assert got["token_entropy"] == pytest.approx(math.log(3))
        assert got["relative_entropy"] == pytest.approx(1.0)

    def test_by_hand(self):
        probs = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], np.float32)
        got = metrics.collapse_monitors(probs)
        mean = [0.75, 0.25]
        assert got["usage_perplexity"] == pytest.approx(
            math.exp(-sum(p * math.log(p) for p in mean))
        )
        assert got["token_entropy"] == pytest.approx(math.log(2) / 2)
        assert got["dead_factors"] == 2.0

    def test_one_factor_and_no_tokens(self):
        assert metrics.collapse_monitors(np.ones((3, 1)))["relative_entropy"] == 0.0
        got = metrics.collapse_monitors(np.zeros((0, 4)))
        assert got["dead_factors"] == 4.0
        assert all(math.isfinite(v) for v in got.values())


class TestStability:
    def test_same_partition_under_other_names(self):
        first = np.random.default_rng(0).integers(0, 5, 300)
        assert metrics.stability(first, ints([4, 2, 0, 1, 3])[first]) == 1.0

    def test_by_hand_and_corners(self):
        assert metrics.stability(ints([0, 0, 1, 1]), ints([1, 1, 1, 0])) == 0.75
        assert metrics.stability(ints([0, 0, 0]), ints([0, 1, 2])) == pytest.approx(1 / 3)
        assert metrics.stability(np.zeros(0, int), np.zeros(0, int)) == 0.0
        with pytest.raises(ValueError, match="first has 2 tokens but second has 1"):
            metrics.stability(ints([0, 1]), ints([0]))

    def test_symmetric(self):
        first, second = np.random.default_rng(1).integers(0, 4, (2, 500))
        assert metrics.stability(first, second) == metrics.stability(second, first)
