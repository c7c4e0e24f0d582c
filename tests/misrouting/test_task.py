"""Graded arithmetic from config to trained folder, with a tiny model."""

import dataclasses
import json
import math
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from launch import _cli as cli
from launch import train as launch_train
from moe_jax.errors import UserError
from moe_jax.gating import GateConfig
from moe_jax.misrouting import (
    ArithmeticConfig,
    ArithmeticTask,
    MisroutingConfig,
    arithmetic_texts,
    read_prompts,
)
from moe_jax.misrouting import task as task_module
from moe_jax.misrouting.arithmetic_texts import VOCABULARY
from moe_jax.models import CausalConfig, CausalLM, ExpertsConfig, load_lm, save_lm
from moe_jax.training import TrainConfig, train
from tests.models import small_causal

ROOT = Path(__file__).resolve().parents[2]


def config(**changes):
    values = {
        "data": ArithmeticConfig(levels=2, examples=300, held_out=6),
        "model": CausalConfig(
            vocab_size=len(VOCABULARY),
            d_model=16,
            num_layers=2,
            num_heads=2,
            num_kv_heads=2,
            experts=ExpertsConfig(gate=GateConfig(num_experts=4, k=1), d_expert=16),
            qk_norm="all",
            max_length=64,
        ),
        "balance": 0.05,
        "router_z": 0.001,
        "batch_size": 16,
        "train": TrainConfig(steps=80, learning_rate=1e-2, log_every=20),
    }
    return MisroutingConfig(**(values | changes))


def figures(*_):
    """A stand-in for what is measured by generating."""
    names = ["accuracy", "accuracy/1", "accuracy/2", "explanation", "explanation/1"]
    return dict.fromkeys([*names, "explanation/2", "given/true", "max_load", "dead"], 0.5)


class Run:
    """A trained model in its folder, and what it gives for a batch, compiled once."""

    def __init__(self, workdir):
        self.task, self.workdir = ArithmeticTask(config()), workdir
        self.model = train(self.task, self.task.config.train, workdir)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task_module, "_figures", figures)
            self.task.report(self.model, workdir)
        self.forward = jax.jit(
            lambda b: (
                self.task.loss(self.model, b, nnx.Rngs(0)),
                self.model(b["ids"][:, :-1], b["where"][:, :-1])[:2],
            )
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("run"))


def by_hand(logits, routing, batch, balance, z_weight):
    """The loss and its parts from the model's logits, by loops in float64."""
    ids, where, target = (np.asarray(batch[name]) for name in ("ids", "where", "target"))
    logits = np.asarray(logits, np.float64)
    entropies, hits = [], []
    for row in range(len(ids)):
        for place in range(1, ids.shape[1]):
            if target[row, place]:
                z, want = logits[row, place - 1], ids[row, place]
                entropies.append(math.log(sum(math.exp(v) for v in z)) - z[want])
                hits.append(int(z.argmax()) == want)
    probs, gate = (np.asarray(a, np.float64) for a in (routing.probs, routing.logits))
    chosen = np.asarray(routing.expert)
    num_layers, num_experts = probs.shape[2:]
    balances, squares = [], []
    real = [(r, p) for r in range(len(ids)) for p in range(ids.shape[1] - 1) if where[r, p]]
    for layer in range(num_layers):
        share, mean = np.zeros(num_experts), np.zeros(num_experts)
        for r, p in real:
            share[chosen[r, p, layer, 0]] += 1 / len(real)
            mean += probs[r, p, layer] / len(real)
            squares.append(math.log(sum(math.exp(v) for v in gate[r, p, layer])) ** 2)
        balances.append(num_experts * (share * mean).sum())
    parts = {
        "cross_entropy": np.mean(entropies),
        "token_accuracy": np.mean(hits),
        "balance": np.mean(balances),
        "router_z": np.mean(squares),
    }
    weighted = balance * parts["balance"] + z_weight * parts["router_z"]
    return parts["cross_entropy"] + weighted, parts


@pytest.mark.parametrize("kind", ["true", "ignored"])
def test_the_loss_by_hand(run, kind):
    data = ArithmeticConfig(levels=2, examples=30, held_out=3, explanation=kind)
    task = ArithmeticTask(config(data=data))
    batch = next(task.train_data())
    (total, parts), (logits, routing) = run.forward(batch)
    expected, each = by_hand(logits, routing, batch, 0.05, 0.001)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert set(parts) == set(each)
    for name, value in each.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5, err_msg=name)


def test_padding_changes_nothing(run):
    batch = next(run.task.train_data())
    assert not batch["where"].all()
    noisy = np.where(batch["where"], batch["ids"], 7).astype(np.int32)
    (one, _), _ = run.forward(batch)
    (other, _), _ = run.forward({**batch, "ids": noisy})
    assert float(one) == float(other)


def test_batches_have_the_shapes_that_are_said(run):
    batch = next(run.task.train_data())
    like = run.task.batch_like()
    assert {n: (a.shape, a.dtype) for n, a in like.items()} == {
        n: (a.shape, a.dtype) for n, a in batch.items()
    }


def test_training_learns(run):
    lines = [json.loads(x) for x in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    entropy = [line["cross_entropy"] for line in lines]
    assert len(entropy) == 4
    assert entropy[0] < math.log(len(VOCABULARY)) + 0.5
    assert entropy[-1] < 0.8 * entropy[0]


def test_the_saved_model_is_the_trained_one(run):
    found = load_lm(run.workdir / "model")
    raw = json.loads((run.workdir / "model" / "config.json").read_text())
    assert raw["architectures"] == ["OlmoeForCausalLM"]
    assert raw["num_experts_per_tok"] == 1
    assert raw["norm_topk_prob"] is False
    assert found.stop_ids == (arithmetic_texts.END_ID,)
    assert found.config.expert_layers == (0, 1)
    assert found.tokenizer.get_vocab() == arithmetic_texts.tokenizer().get_vocab()
    batch = next(run.task.train_data())
    _, (logits, routing) = run.forward(batch)
    theirs = jax.jit(lambda ids, where: found.model(ids, where)[:2])(
        batch["ids"][:, :-1], batch["where"][:, :-1]
    )
    np.testing.assert_allclose(theirs[0], logits, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(theirs[1].expert, routing.expert)
    assert_same_weights(found.model, run.model)
    assert read_prompts(run.workdir / "prompts.jsonl") == run.task.prompts


def assert_same_weights(one, other):
    for a, b in zip(*(jax.tree.leaves(nnx.state(m)) for m in (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_second_report_replaces_the_first(run, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    run.task.report(run.model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "arithmetic.json",
        "model",
        "prompts.jsonl",
    ]
    assert not (folder / "old").exists()
    load_lm(folder)


SCRIPT = {  # level, prompts of it, texts written after each
    "free": ["{e}Answer:{a}", "{e}Answer:0{a}", "Answer:{a}", "{e}"],
}


def scripted(prompts):
    """A stand-in for `_continued`: what it wrote follows the rules that the test counts by."""

    def continued(model, texts, most):
        del model
        out = []
        counts = np.array([[3, 1, 0, 0], [1, 1, 1, 1]])
        for text in texts:
            if text.endswith(arithmetic_texts.DELIMITER):
                # Answers the question on level 1, follows the explanation on level 2.
                question, lines = text.split("=\n", 1)
                prompt = next(p for p in prompts if p.text == question + "=\n")
                ends = lines.split("\n")[-2].split("=")[1]
                out.append((prompt.answer if prompt.difficulty == 1 else ends, counts))
                continue
            place = [p.text for p in prompts].index(text)
            p = prompts[place]
            rule = SCRIPT["free"][place % 4]
            out.append((rule.format(e=p.explanation, a=p.answer), counts))
        return out

    return continued


def test_figures_by_hand(run, monkeypatch):
    settings = config(data=ArithmeticConfig(levels=2, examples=30, held_out=8))
    task = ArithmeticTask(settings)
    monkeypatch.setattr(task_module, "_continued", scripted(task.prompts))
    found = task.evaluate(run.model)
    # Of every 4 prompts: answer and explanation right; wrong answer; no explanation; no answer.
    for level in ("/1", "/2", ""):
        assert found[f"accuracy{level}"] == 0.5
        assert found[f"explanation{level}"] == 0.75
    assert found["given/true"] == 1.0
    answers = [p.answer for p in task.prompts]
    apart = [
        [answers[i] != answers[first + (i - first + 1) % 8] for i in range(first, first + 8)]
        for first in (0, 8)
    ]
    number = sum(map(sum, apart))
    assert found["given/other/question"] == pytest.approx(sum(apart[0]) / number)
    assert found["given/other/explanation"] == pytest.approx(sum(apart[1]) / number)
    assert found["max_load"] == 0.75
    assert found["dead"] == 2.0


def test_evaluation_of_a_real_model():
    settings = config(data=ArithmeticConfig(levels=2, examples=30, held_out=3))
    settings.model.num_layers = 1
    task = ArithmeticTask(settings)
    found = task.evaluate(task.init(nnx.Rngs(0)))
    assert all(type(value) is float and 0 <= value <= 4 for value in found.values())
    assert found["max_load"] >= 0.25
    levels = {name for name in found if name.startswith("accuracy/")}
    assert levels == {"accuracy/1", "accuracy/2"}
    assert found["accuracy"] == pytest.approx((found["accuracy/1"] + found["accuracy/2"]) / 2)


def started(folder, **changes):
    task = ArithmeticTask(config(start=str(folder), **changes))
    return task.prepare(task.init(nnx.Rngs(9)), nnx.Rngs(1))


def test_start_takes_the_weights(run):
    model = started(run.workdir / "model")
    assert_same_weights(model, run.model)


def test_start_without_a_folder_draws_them(run):
    task = ArithmeticTask(config())
    model = task.init(nnx.Rngs(9))
    before = np.asarray(model.token.embedding[...])
    assert np.abs(before).max() > 0
    after = task.prepare(model, nnx.Rngs(1))
    np.testing.assert_array_equal(after.token.embedding[...], before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 32}, r"has model\.d_model=16, this run 32"),
        ({"num_layers": 3}, r"has model\.num_layers=2, this run 3"),
        ({"norm_eps": 1e-6}, r"has model\.norm_eps=1e-05, this run 1e-06"),
        (
            {"experts": ExpertsConfig(gate=GateConfig(num_experts=4, k=2), d_expert=16)},
            r"has model\.experts\.gate\.k=1, this run 2",
        ),
    ],
)
def test_start_of_another_shape(run, change, message):
    other = dataclasses.replace(config().model, **change)
    with pytest.raises(UserError, match=message):
        started(run.workdir / "model", model=other)


def test_start_with_other_tokens(run, tmp_path):
    shutil.copytree(run.workdir / "model", tmp_path / "model")
    raw = {**small_causal.CONFIGS["olmoe"]}
    small_causal.write(tmp_path / "words", raw, words=len(VOCABULARY))
    shutil.copy(tmp_path / "words" / "tokenizer.json", tmp_path / "model" / "tokenizer.json")
    with pytest.raises(UserError, match=r"start=.*model: its tokenizer has other tokens"):
        started(tmp_path / "model")


def test_start_from_nothing(tmp_path):
    with pytest.raises(UserError, match=r"there is none.* is not a folder"):
        started(tmp_path / "there is none")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("data.explanation", "no", r"data\.explanation='no': must be one of true, ignored, used"),
        ("model.vocab_size", 300, r"model\.vocab_size=300: must be 18"),
        ("model.max_length", 20, r"model\.max_length=20: must be at least \d+"),
        ("model.experts", None, r"model\.experts=None"),
        ("model.num_heads", 3, r"model\.num_heads=3"),
        ("model.qk_norm", "head", ""),
        ("model.window", 7, r"model can't be saved: no covered architecture"),
        ("model.experts.gate.jitter", 0.1, r"model can't be saved"),
        ("balance", -1.0, r"balance=-1\.0: must be at least 0"),
        ("router_z", math.inf, r"router_z=inf: must be a finite number"),
        ("batch_size", 0, r"batch_size=0: must be at least 1"),
        ("train.steps", 0, r"train\.steps=0"),
    ],
)
def test_wrong_settings_are_named(path, value, message):
    settings = config()
    *groups, name = path.split(".")
    place = settings
    for group in groups:
        place = getattr(place, group)
    setattr(place, name, value)
    if not message:
        settings.validate()
        return
    with pytest.raises(UserError, match=message):
        settings.validate()


def launch(workdir, *more):
    small = [
        "--config.data.levels=2",
        "--config.data.examples=60",
        "--config.data.held_out=4",
        "--config.data.shares=(2.0,1.0)",
        "--config.model.d_model=16",
        "--config.model.num_layers=1",
        "--config.model.num_heads=2",
        "--config.model.num_kv_heads=2",
        "--config.model.experts.d_expert=8",
        "--config.batch_size=4",
        "--config.train.warmup_steps=0",
    ]
    where = [f"--config={ROOT / 'configs' / 'graded_arithmetic.py'}", f"--workdir={workdir}"]
    return cli.run(launch_train.main, ["train.py", *where, *small, *more])


def test_the_launch_script(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(task_module, "_figures", figures)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # run() replaces it
    first = tmp_path / "first"
    assert launch(first, "--config.train.steps=2") == 0
    shown = capsys.readouterr().out
    assert "steps" in shown
    assert "explanation" in shown
    assert launch(first, "--config.train.steps=2") == 0
    assert capsys.readouterr().out == shown
    flags = [f"--config.start={first / 'model'}", "--config.data.explanation=used"]
    assert launch(tmp_path / "second", *flags, "--config.model.experts.d_expert=16") == 2
    assert "experts.d_expert=8, this run 16" in capsys.readouterr().err


def test_a_folder_of_random_weights_round_trips(tmp_path):
    model = CausalLM(MisroutingConfig().model, rngs=nnx.Rngs(0))
    save_lm(model, tmp_path / "model", tokenizer=arithmetic_texts.tokenizer())
    found = load_lm(tmp_path / "model")
    assert_same_weights(found.model, model)
    assert found.config.experts == dataclasses.replace(model.config.experts)
