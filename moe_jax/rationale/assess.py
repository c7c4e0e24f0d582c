"""Everything that is measured on a trained rationale model, in one record.

`assess` takes what the model did with the training and test texts and fills an `Assessment`;
`flat` gives its figures by name; `to_json` and `from_json` store it.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from moe_jax.common import schema
from moe_jax.common.files import read_object
from moe_jax.common.schema import Json, plain
from moe_jax.errors import UserError
from moe_jax.rationale import baselines, metrics
from moe_jax.rationale.eraser import rationale_scores
from moe_jax.rationale.faithfulness import Score, faithfulness
from moe_jax.rationale.results import Assessment, MethodScores, TextRationale
from moe_jax.rationale.words import typical_words


def assess(
    train: list[TextRationale],
    test: list[TextRationale],
    labels: list[str],
    *,
    train_states: list[np.ndarray] | None = None,
    test_states: list[np.ndarray] | None = None,
    score: Score | None = None,
    seed: int = 0,
    num_samples: int = 20,
    num_scored: int = 100,
) -> Assessment:
    """Measure a model on its test texts; maps and baselines are learned on the training texts.

    Without gold labels in both parts, `methods` and `rationale_scores` are empty and `mapping` is
    all -1 (it is learned where only the training part has labels); all else is filled. Besides
    the collapse monitors, `monitors` then holds the model's macro_f1_low and macro_f1_high (95%
    bootstrap interval over documents), homogeneity, completeness and v_measure.

    Args:
      train: the model's assignment of the training texts.
      test: the same for the test texts.
      labels: names of the gold labels, [] where there are none.
      train_states: for each training text the encoder's token states [s, d], for k-means and NMF;
        None leaves these two out.
      test_states: the same for the test texts.
      score: from one mask [s] (True = token kept) for each of the FIRST `num_scored` texts of
        `test` (all of them if there are fewer) to the cosine of each between the target embedding
        and the one predicted from the kept tokens. Never asked about an empty mask. None leaves
        `faithfulness` empty.
      seed: seed of everything random here.
      num_samples: number of test texts to keep for display, drawn at random.
      num_scored: number of test texts that `score` knows.

    Raises:
      ValueError: no texts at all; lengths, numbers of factors or labels that don't fit together;
        probabilities that are not finite.
    """
    num_factors = _check(train, test, labels)
    rng = np.random.default_rng(seed)
    assigned = [[t.probs.argmax(axis=1) for t in part] for part in (train, test)]
    probs = np.concatenate([np.zeros((0, num_factors)), *[t.probs for t in test]])
    taken = np.bincount(_flat(assigned[1]), minlength=num_factors)
    monitors = metrics.collapse_monitors(probs)
    mapping = np.full(num_factors, -1, np.int64)
    methods: list[MethodScores] = []
    rationales: dict[str, float] = {}
    gold = [[_labels(t) for t in part] for part in (train, test)]
    known = [any((g >= 0).any() for g in part) for part in gold]
    if known[0]:
        counts = metrics.contingency(
            _flat(assigned[0]), _flat(gold[0]), num_factors=num_factors, num_labels=len(labels)
        )
        mapping = metrics.hungarian_map(counts)
    if all(known):
        flat_gold = _flat(gold[0]), _flat(gold[1])
        groups = {"model": baselines.Groups(_flat(assigned[0]), _flat(assigned[1]))}
        groups |= _baselines(groups["model"], train_states, test_states, num_factors, seed)
        methods = [
            _method(name, group, *flat_gold, num_factors, len(labels))
            for name, group in groups.items()
        ]
        rationales = rationale_scores(test, mapping)
        monitors |= _label_monitors(assigned[1], gold[1], mapping, len(labels), seed)
    chosen = np.sort(rng.permutation(len(test))[:num_samples])
    return Assessment(
        labels=list(labels),
        methods=methods,
        mapping=mapping,
        usage=taken / max(1, taken.sum()),
        monitors=monitors,
        rationale_scores=rationales,
        faithfulness=faithfulness(test[:num_scored], score, seed=seed) if score else {},
        top_words=typical_words([*train, *test], num_factors=num_factors),
        samples=[test[i] for i in chosen],
    )


def _flat(parts: Sequence[np.ndarray]) -> Int[np.ndarray, " t"]:
    """The tokens of all texts in one array."""
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


def _labels(text: TextRationale) -> Int[np.ndarray, " s"]:
    """Gold labels of a text, all -1 where it has none."""
    return np.full(len(text.probs), -1) if text.labels is None else text.labels


def _check(train: list[TextRationale], test: list[TextRationale], labels: list[str]) -> int:
    """Return the number of factors, or raise ValueError where the texts don't fit together."""
    if not train and not test:
        raise ValueError("train and test are both empty: there is nothing to assess")
    num_factors = (train or test)[0].probs.shape[1]
    for part, texts in (("train", train), ("test", test)):
        for i, text in enumerate(texts):
            here, size = f"{part}[{i}]", len(text.offsets)
            if text.probs.shape != (size, num_factors):
                raise ValueError(
                    f"{here}.probs has shape {text.probs.shape}; {size} tokens and "
                    f"{num_factors} factors need ({size}, {num_factors})"
                )
            if not (np.isfinite(text.probs).all() and (text.probs >= 0).all()):
                raise ValueError(f"{here}.probs holds a value that is negative or not finite")
            if text.labels is not None and text.labels.shape != (size,):
                raise ValueError(f"{here}.labels has {text.labels.size} labels for {size} tokens")
            if text.labels is not None and text.labels.size:
                low, high = int(text.labels.min()), int(text.labels.max())
                if low < -1 or high >= len(labels):
                    raise ValueError(
                        f"{here}.labels holds {low}..{high}; with {len(labels)} label names "
                        f"it must lie in -1..{len(labels) - 1}"
                    )
    return num_factors


def _stacked(name: str, states: list[np.ndarray], num_tokens: int) -> np.ndarray:
    """The states of all texts in one array [t, d]."""
    found = sum(len(s) for s in states)
    if found != num_tokens:
        raise ValueError(f"{name} has {found} tokens; the texts have {num_tokens}")
    return np.concatenate(states)


def _baselines(
    model: baselines.Groups,
    train_states: list[np.ndarray] | None,
    test_states: list[np.ndarray] | None,
    num_factors: int,
    seed: int,
) -> dict[str, baselines.Groups]:
    """The groups of each baseline by its name."""
    sizes = len(model.train), len(model.test)
    found = {
        "majority": baselines.majority(*sizes),
        "random": baselines.usage_matched_random(*model, seed=seed),
    }
    if train_states is not None and test_states is not None:
        known = _stacked("train_states", train_states, sizes[0])
        new = _stacked("test_states", test_states, sizes[1])
        found["k-means"] = baselines.k_means(known, new, num_factors, seed=seed)
        found["NMF"] = baselines.nmf(known, new, num_factors, seed=seed)
    return found


def _method(
    name: str,
    groups: baselines.Groups,
    gold_train: np.ndarray,
    gold_test: np.ndarray,
    num_factors: int,
    num_labels: int,
) -> MethodScores:
    """Learn both maps on the training tokens and score the test tokens."""
    size = {"num_factors": num_factors, "num_labels": num_labels}
    learned = metrics.contingency(groups.train, gold_train, **size)
    one, many = metrics.hungarian_map(learned), metrics.many_to_one_map(learned)
    return MethodScores(
        name=name,
        one_to_one=metrics.score_labels(one[groups.test], gold_test, num_labels),
        many_to_one=metrics.score_labels(many[groups.test], gold_test, num_labels),
        ami=metrics.adjusted_mutual_information(
            metrics.contingency(groups.test, gold_test, **size)
        ),
    )


def _label_monitors(
    assigned: list[np.ndarray],
    gold: list[np.ndarray],
    mapping: np.ndarray,
    num_labels: int,
    seed: int,
) -> dict[str, float]:
    """The interval of the model's macro F1, and homogeneity, completeness and V-measure."""
    predicted = [mapping[a] for a in assigned]
    low, high = metrics.macro_f1_interval(predicted, gold, num_labels, seed=seed)
    counts = metrics.contingency(
        _flat(assigned), _flat(gold), num_factors=len(mapping), num_labels=num_labels
    )
    names = ("macro_f1_low", "macro_f1_high", "homogeneity", "completeness", "v_measure")
    return dict(zip(names, (low, high, *metrics.v_measure(counts)), strict=True))


def flat(assessment: Assessment) -> dict[str, float]:
    """Return the figures of an assessment by name, as one level of floats for a metrics file.

    "model/macro_f1", "model/macro_precision", "model/macro_recall", "model/many_to_one_f1",
    "model/ami" and the same for each baseline; "monitors/...", "eraser/...", "faithfulness/...".
    """
    found: dict[str, float] = {}
    for method in assessment.methods:
        scores = method.one_to_one
        found |= {
            f"{method.name}/macro_precision": scores.macro_precision,
            f"{method.name}/macro_recall": scores.macro_recall,
            f"{method.name}/macro_f1": scores.macro_f1,
            f"{method.name}/many_to_one_f1": method.many_to_one.macro_f1,
            f"{method.name}/ami": method.ami,
        }
    for part, values in (
        ("monitors", assessment.monitors),
        ("eraser", assessment.rationale_scores),
        ("faithfulness", assessment.faithfulness),
    ):
        found |= {f"{part}/{name}": value for name, value in values.items()}
    return {name: float(value) for name, value in found.items()}


def to_json(assessment: Assessment) -> dict[str, Any]:
    """Return the assessment as dicts, lists, strings and numbers, ready for `json.dump`.

    Raises:
      ValueError: a figure is NaN or infinite.
    """
    samples = [text._replace(probs=_nine_digits(text.probs)) for text in assessment.samples]
    stored: dict[str, Any] = plain(
        dataclasses.replace(assessment, samples=samples), number=_refuse_nan
    )
    return stored


def from_json(stored: Json) -> Assessment:
    """Return the assessment that `to_json` stored (probabilities as float32, scores float64).

    Raises:
      UserError: a field is missing or holds something else.
    """
    found = schema.from_json(Assessment, stored, "assessment")
    samples = [
        text._replace(
            offsets=text.offsets.reshape(-1, 2),
            probs=text.probs.astype(np.float32).reshape(-1, len(found.usage)),
        )
        for text in found.samples
    ]
    return dataclasses.replace(found, samples=samples)


def read_assessment(path: Path) -> Assessment:
    """The assessment that a report left in a file.

    Raises:
      UserError: the file can't be read or holds none.
    """
    stored = read_object(path)
    try:
        return from_json(stored)
    except UserError as error:
        raise UserError(f"{path}: is not an assessment ({error}); evaluate the run again") from None


def _nine_digits(probs: np.ndarray) -> np.ndarray:
    """Float32 as float64 of nine digits: they bring it back exactly, in half the space."""
    if probs.dtype != np.float32:
        return probs
    return np.vectorize(lambda x: float(f"{x:.9g}"), otypes=[float])(probs)


def _refuse_nan(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"the assessment holds {value}, which JSON has no number for")
    return value
