"""The whole system on a small random encoder and a corpus of letters."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from flax import nnx

from moe_jax.data import CorpusConfig, Example
from moe_jax.errors import UserError
from moe_jax.models import pretrained
from moe_jax.rationale import (
    ContextConfig,
    LossWeights,
    ModelConfig,
    RationaleConfig,
    RationaleTask,
)
from moe_jax.training import TrainConfig, restore_model, train
from tests.models import small_encoders


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A random BERT with 24 positions, and its folder."""
    folder = tmp_path_factory.mktemp("encoder") / "bert"
    small_encoders.write(folder, small_encoders.CONFIGS["bert"])
    return pretrained.load_encoder(str(folder))


def _records(num, rng, labelled=True):
    for _ in range(num):
        text, spans = "", []
        for label in rng.permutation(2):
            start = len(text) + bool(text)
            words = rng.choice(list("abc" if label == 0 else "ghi"), rng.integers(2, 6))
            text = f"{text} {' '.join(words)}".strip()
            spans.append([start, len(text), int(label)])
        yield {"text": text, **({"spans": spans} if labelled else {})}


def _write(folder, labelled=True):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name, num in (("train", 14), ("test", 6)):
        lines = [json.dumps(r) + "\n" for r in _records(num, rng, labelled)]
        if name == "train":  # one text that goes through in pieces
            lines.append(json.dumps({"text": "a b c " * 12}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))
    if labelled:
        (folder / "labels.json").write_text('["low", "high"]')
    return str(folder)


def _config(path, encoder, *, train_encoder=False, **changes):
    model = {"num_factors": 3, "restarts": 1, "word_rounds": 1} | changes
    return RationaleConfig(
        data=CorpusConfig(path=path),
        context=ContextConfig(
            encoder=encoder.name,
            windows=(6,),
            stride=3,
            max_tokens=20,
            train_encoder=train_encoder,
        ),
        model=ModelConfig(**model),
        losses=LossWeights(sentence=1.0, entropy=0.01, overlap=0.1, diversity=0.01, balance=1.0),
        batch_size=8,
        train=TrainConfig(steps=2, learning_rate=1e-2, log_every=1, eval_every=2),
    )


@dataclasses.dataclass
class Run:
    task: RationaleTask
    config: RationaleConfig
    workdir: object
    model: nnx.Module

    def lines(self):
        return [json.loads(x) for x in (self.workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory, encoder):
    """Two steps with a frozen encoder on the labelled corpus."""
    folder = tmp_path_factory.mktemp("run")
    config = _config(_write(folder / "corpus"), encoder, decoder="linear")
    config.losses.token = 0.1
    task = RationaleTask(config, encoder)
    model = train(task, config.train, folder / "work")
    return Run(task, config, folder / "work", model)


def _same(one, other):
    pairs = zip(one, other, strict=True)
    return all(
        np.array_equal(a.probs, b.probs) and np.array_equal(a.offsets, b.offsets) for a, b in pairs
    )


def _assert_rationale(found, text, num_factors=3):
    assert found.text == text
    assert found.probs.shape == (len(found.offsets), num_factors)
    assert found.offsets.shape == (len(found.offsets), 2)
    if len(found.offsets):
        assert found.offsets.min() >= 0
        assert found.offsets.max() <= len(text)
        assert (found.offsets[:, 0] <= found.offsets[:, 1]).all()
        np.testing.assert_allclose(found.probs.sum(axis=1), 1, atol=1e-5)


def test_init_needs_neither_texts_nor_memory(encoder, tmp_path):
    config = _config(str(tmp_path / "there is none"), encoder)
    task = RationaleTask(config, encoder)
    model = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(model))
    assert leaves
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
    assert model.words_ve.get_value().shape == (encoder.config.vocab_size, 3)


def test_prepare_measures_means_and_starts_the_gate(run):
    model = run.task.init(nnx.Rngs(0))
    assert not np.asarray(model.state_mean_d[...]).any()
    model = run.task.prepare(model, nnx.Rngs(1))
    context = run.task._contexts[0]
    states = np.concatenate(context.states).astype(np.float64)
    np.testing.assert_allclose(model.state_mean_d[...], states.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(model.target_mean_d[...], context.targets.mean(axis=0), atol=1e-5)
    gate = np.asarray(model.gate.w_de[...])
    np.testing.assert_allclose(np.linalg.norm(gate, axis=0), 1, atol=1e-5)
    words = np.asarray(model.words_ve[...])
    assert np.isfinite(words).all()
    seen = np.unique(np.concatenate(run.task._tokens[0][0].ids))
    unseen = np.setdiff1d(np.arange(len(words)), seen)
    assert np.abs(words[seen]).max() > 0
    np.testing.assert_array_equal(words[unseen], 0)
    again = run.task.prepare(run.task.init(nnx.Rngs(0)), nnx.Rngs(1))
    np.testing.assert_array_equal(again.gate.w_de[...], gate)


@pytest.mark.parametrize("train_encoder", [False, True])
def test_batch_shapes_are_known_without_encoding(encoder, tmp_path, train_encoder, monkeypatch):
    config = _config(_write(tmp_path / "texts"), encoder, train_encoder=train_encoder)
    real = next(RationaleTask(config, encoder).train_data())
    task = RationaleTask(config, encoder)
    monkeypatch.setattr(task, "_contextualise", None)
    like = task.batch_like()
    assert {n: (a.shape, a.dtype) for n, a in like.items()} == {
        n: (a.shape, a.dtype) for n, a in real.items()
    }


def test_training_leaves_finite_figures(run):
    losses = [line for line in run.lines() if "loss" in line]
    assert [line["step"] for line in losses] == [1, 2]
    for line in losses:
        for name in ("loss", "sentence", "token", "entropy", "overlap", "diversity", "balance"):
            assert math.isfinite(line[name])
        weights = dataclasses.asdict(run.config.losses)
        total = sum(weight * line[name] for name, weight in weights.items())
        np.testing.assert_allclose(line["loss"], total, rtol=1e-4)
    (evaluation,) = [line for line in run.lines() if "loss" not in line]
    assert any(name.startswith("eval/") for name in evaluation)


def test_evaluate_gives_finite_numbers(run):
    figures = run.task.evaluate(run.model)
    assert all(type(value) is float for value in figures.values())
    assert all(math.isfinite(value) for value in figures.values())
    assert any("macro_f1" in name for name in figures)


def test_report_and_show(run, capsys, tmp_path):
    assert run.task.show(tmp_path) is False
    assert capsys.readouterr().out == ""
    run.task.report(run.model, tmp_path)
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")[:500]
    stored = json.loads((tmp_path / "assessment.json").read_text(encoding="utf-8"))
    assert stored["labels"] == ["low", "high"]
    assert run.task.show(tmp_path) is True
    assert "macro" in capsys.readouterr().out.lower()


TEXTS = {
    "plain": "a b g h",
    "spaces": "   ",
    "unicode": "ä é 😀 a\u0301 b 日本 c",
    "long": "a b g h i c " * 40,
    "tabs": "\ta\n\nb\x00c",
}


@pytest.mark.parametrize("name", TEXTS)
def test_rationales_lie_within_their_text(run, name):
    text = TEXTS[name]
    (found,) = run.task.rationales(run.model, [text])
    _assert_rationale(found, text)
    assert found.labels is None
    starts = found.offsets[:, 0]
    assert (np.diff(starts) >= 0).all()
    if name == "long":
        assert len(found.offsets) == 240  # more than the encoder's 24 positions, in pieces
        assert "".join(text[a:b] for a, b in found.offsets) == text.replace(" ", "")


def test_rationales_of_several_texts_are_those_of_each(run):
    texts = [*TEXTS.values(), ""]
    together = run.task.rationales(run.model, texts)
    assert [r.text for r in together] == texts
    assert len(together[-1].offsets) == 0
    assert run.task.rationales(run.model, []) == []
    (alone,) = run.task.rationales(run.model, [TEXTS["plain"]])
    np.testing.assert_allclose(together[0].probs, alone.probs, atol=1e-3)


def test_rationales_of_examples_have_gold_labels(run):
    (found,) = run.task.rationales(run.model, [Example("a b g h", ((0, 3, 0), (4, 5, 1)))])
    assert found.labels.tolist() == [0, 0, 1, -1]


def test_a_restored_model_says_the_same(run, encoder):
    task = RationaleTask(run.config, encoder)
    model = restore_model(task, run.workdir)
    texts = list(TEXTS.values())
    assert _same(task.rationales(model, texts), run.task.rationales(run.model, texts))


def test_a_model_of_another_kind_is_refused(run):
    with pytest.raises(UserError, match="model is a Linear"):
        run.task.rationales(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), ["a"])


def test_the_encoder_can_be_trained_along(run, encoder, tmp_path):
    config = _config(run.config.data.path, encoder, train_encoder=True)
    config.train = TrainConfig(steps=1, learning_rate=1e-3, log_every=1)
    task = RationaleTask(config, encoder)
    before = jax.device_get(nnx.state(encoder.model))
    model = train(task, config.train, tmp_path)
    after = jax.device_get(nnx.state(model.encoder))
    unmoved = [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
        )
        if np.array_equal(a, b)
    ]
    assert len(unmoved) < len(jax.tree.leaves(before)) / 4, unmoved
    # What was loaded is as it was.
    for a, b in zip(
        jax.tree.leaves(before),
        jax.tree.leaves(jax.device_get(nnx.state(encoder.model))),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    text = TEXTS["long"]
    (found,) = task.rationales(model, [text])
    _assert_rationale(found, text)
    restored = restore_model(RationaleTask(config, encoder), tmp_path)
    assert _same(task.rationales(restored, [text]), [found])


def test_trained_along_and_frozen_start_alike(run, encoder):
    frozen = run.task.prepare(run.task.init(nnx.Rngs(0)), nnx.Rngs(1))
    config = _config(run.config.data.path, encoder, train_encoder=True, decoder="linear")
    config.losses.token = 0.1
    task = RationaleTask(config, encoder)
    task.__dict__["_contexts"] = run.task._contexts  # the same states: not encoded again
    along = task.prepare(task.init(nnx.Rngs(0)), nnx.Rngs(1))
    one = run.task.rationales(frozen, ["a b g h i c a b"])
    other = task.rationales(along, ["a b g h i c a b"])
    np.testing.assert_allclose(one[0].probs, other[0].probs, atol=0.05)  # float16 states or not


@pytest.mark.parametrize("num_factors", [2, 3])
def test_a_corpus_without_labels(encoder, tmp_path, num_factors):
    config = _config(_write(tmp_path / "corpus", labelled=False), encoder, num_factors=num_factors)
    config.train = TrainConfig(steps=1, learning_rate=1e-2, log_every=1)
    task = RationaleTask(config, encoder)
    model = train(task, config.train, tmp_path / "work")
    figures = task.evaluate(model)
    assert figures
    assert all(math.isfinite(value) for value in figures.values())
    assert not any("macro_f1" in name for name in figures)
    task.report(model, tmp_path / "work")
    assert task.show(tmp_path / "work")


def test_no_test_part_means_no_evaluation(run, encoder, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "train.jsonl").write_text('{"text": "a b g h"}\n{"text": "c i"}\n')
    (tmp_path / "c" / "test.jsonl").write_text("")
    task = RationaleTask(_config(str(tmp_path / "c"), encoder), encoder)
    assert task.evaluate(run.model) == {}


def test_a_bad_config_is_refused_at_once(encoder):
    config = _config("x", encoder)
    config.model.temperature = 0.0
    with pytest.raises(UserError, match=r"model\.temperature"):
        RationaleTask(config, encoder)


def test_texts_without_tokens_are_one_line(encoder, tmp_path):
    """One among others is fine; so is a test part of such texts."""
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": "\u200b" * n}) + "\n" for n in (1, 2))
    )
    task = RationaleTask(_config(str(tmp_path / "a.jsonl"), encoder), encoder)
    with pytest.raises(UserError, match=r"a\.jsonl: no text to train on has a token") as caught:
        train(task, TrainConfig(steps=2), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()
    (tmp_path / "split").mkdir()
    for name, texts in (("train", ["\u200b", "a b c"]), ("test", ["\u200b"])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "split" / f"{name}.jsonl").write_text(lines)
    task = RationaleTask(_config(str(tmp_path / "split"), encoder), encoder)
    model = train(task, TrainConfig(steps=2, log_every=1), tmp_path / "fine")
    assert all(math.isfinite(v) for v in task.evaluate(model).values())
