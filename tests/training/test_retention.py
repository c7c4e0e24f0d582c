"""Which checkpoints are kept, and restoring the one that is asked for."""

import dataclasses
import json
import os
import signal
import warnings

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given

from launch import _cli as cli
from launch import _systems as systems
from launch import evaluate
from moe_jax.common import Interrupted
from moe_jax.errors import UserError
from moe_jax.training import TrainConfig, checkpoint, restore_model_at, train
from moe_jax.training.checkpoint import list_steps
from moe_jax.training.retention import Best, Retention
from tests.training import toy

MAX, MIN = Best("f1", True), Best("f1", False)
FIGURES = {0: {}, 10: {"f1": 0.5}, 20: {"f1": 0.9}, 30: {"f1": None}, 40: {"f1": 0.9}, 50: {}}


@pytest.mark.parametrize(
    "rule, kept",
    [
        (Retention(1), {50}),
        (Retention(3), {30, 40, 50}),
        (Retention(9), set(FIGURES)),
        (Retention(1, every=20), {20, 40, 50}),
        (Retention(1, best=MAX), {20, 50}),
        (Retention(1, best=MIN), {10, 50}),
        (Retention(2, every=30, best=MIN), {10, 30, 40, 50}),
        (Retention(1, best=Best("loss", False)), {50}),
    ],
)
def test_by_hand(rule, kept):
    assert rule.kept(FIGURES, FIGURES) == kept


@given(
    st.dictionaries(
        st.integers(0, 99),
        st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)),
        min_size=1,
    ),
    st.integers(1, 4),
    st.integers(0, 5),
    st.sampled_from([None, MAX, MIN]),
)
def test_what_always_holds(values, newest, every, best):
    figures = {step: {"f1": value} for step, value in values.items()}
    rule = Retention(newest, every, best)
    kept = rule.kept(values, figures)
    assert kept <= set(values)
    assert set(sorted(values)[-newest:]) <= kept
    assert rule.kept(kept, figures) == kept
    finite = [v for v in values.values() if v is not None and np.isfinite(v)]
    if best is not None and finite:
        top = max(finite) if best.highest else min(finite)
        assert any(values[step] == top for step in kept)
    if not every and best is None:
        assert len(kept) == min(newest, len(values))


@pytest.mark.parametrize("text", ["f1", "max", "max:", ":f1", "most:f1"])
def test_rules_that_are_none(text):
    with pytest.raises(UserError, match=r"train.keep_best=.*: must be max:NAME or min:NAME"):
        Best.parse(text)


class Figured(toy.ToyTask):
    """Its figure goes up and down; one is not finite."""

    BY_CALL = (0.3, 0.8, 0.5, float("nan"), 0.8, 0.1)

    def evaluate(self, model):
        self.evaluated += 1
        return {"f1": self.BY_CALL[self.evaluated - 1]}


def settings(**changes):
    base = {"steps": 60, "log_every": 5, "eval_every": 10, "checkpoint_every": 10}
    return TrainConfig(**(base | {"keep_checkpoints": 1, "keep_best": "max:f1"} | changes))


def saved(workdir):
    return list_steps(workdir / "checkpoints")


@pytest.mark.parametrize(
    "changes, steps",
    [
        ({}, [20, 60]),
        ({"keep_best": "min:f1"}, [60]),
        ({"keep_best": "max:f1", "keep_every": 30}, [20, 30, 60]),
        ({"keep_best": "", "keep_every": 20}, [20, 40, 60]),
        ({"checkpoint_every": 20, "keep_checkpoints": 2}, [20, 40, 60]),
    ],
)
def test_a_run_keeps_what_it_should(tmp_path, changes, steps):
    train(Figured(), settings(**changes), tmp_path)
    assert saved(tmp_path) == steps


def test_the_best_is_restored(tmp_path):
    train(Figured(), settings(), tmp_path)
    models = [
        restore_model_at(toy.ToyTask(), tmp_path, which) for which in ("best", "20", "newest")
    ]
    assert [step for _, step in models] == [20, 20, 60]
    best, same, newest = ([np.asarray(a) for a in jax.tree.leaves(nnx.state(m))] for m, _ in models)
    assert all(np.array_equal(a, b) for a, b in zip(best, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(best, newest, strict=True))


class Sends(Figured):
    """Gets a signal at its third evaluation, as if from outside."""

    def evaluate(self, model):
        if self.evaluated == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().evaluate(model)


def test_an_evaluation_cut_off_by_a_signal_counts_later(tmp_path):
    """Saved without a figure at step 30, and again with it when the run goes on."""
    with pytest.raises(Interrupted):
        train(Sends(), settings(keep_best="min:f1", keep_checkpoints=3), tmp_path)
    assert checkpoint.newest(tmp_path / "checkpoints").run["figures"] == {}
    again = Figured()
    again.evaluated = 2
    train(again, settings(keep_best="min:f1", keep_checkpoints=3), tmp_path)
    record = checkpoint.find(tmp_path / "checkpoints", "60").run
    assert record["figures"] == {"f1": 0.1}
    assert saved(tmp_path) == [40, 50, 60]
    assert again.evaluated == 6


def test_a_name_that_the_evaluation_does_not_give(tmp_path):
    with pytest.raises(UserError, match=r"no figure 'f2', but f1"):
        train(Figured(), settings(keep_best="max:f2"), tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"keep_every": 15}, r"keep_every=15: must be a multiple of train.checkpoint_every=10"),
        ({"keep_every": -10}, r"train.keep_every=-10: must be from 0"),
        ({"keep_best": "f1"}, r"train.keep_best='f1': must be max:NAME"),
        ({"eval_every": 0}, r"must come with evaluations: train.checkpoint_every=10 must be"),
        ({"eval_every": 20}, r"checkpoint_every=10 must be a multiple of train.eval_every=20"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(UserError, match=message):
        settings(**changes).validate("train")


def test_the_script_evaluates_the_one_that_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setitem(systems.SYSTEMS, "toy", toy.SYSTEM)
    config = toy.ToyConfig(train=settings(keep_best="max:accuracy", keep_every=20))
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(_as_json(config)))
    train(toy.ToyTask(), config.train, workdir)

    def run(which):
        status = cli.run(evaluate.main, ["x", f"--workdir={workdir}", f"--checkpoint={which}"])
        return status, capsys.readouterr()

    assert run("20")[1].out.startswith("Step 20\n")
    assert run("newest")[1].out.startswith("Step 60\n")
    status, said = run("best")
    assert status == 0
    step = int(said.out.split()[1])
    records = {s: checkpoint.find(workdir / "checkpoints", str(s)).run for s in saved(workdir)}
    figures = {s: r["figures"].get("accuracy", -1) for s, r in records.items()}
    assert figures[step] == max(figures.values())
    status, said = run("21")
    assert status == 2
    assert "there is no checkpoint 21; there are " in said.err


def _as_json(config):
    return {"system": "toy"} | json.loads(json.dumps(dataclasses.asdict(config)))


def test_best_of_a_run_that_keeps_none(tmp_path):
    train(Figured(), settings(keep_best=""), tmp_path)
    with pytest.raises(UserError, match=r"keeps no best checkpoint"):
        restore_model_at(toy.ToyTask(), tmp_path, "best")


def test_a_damaged_one_that_was_asked_for(tmp_path):
    train(Figured(), settings(), tmp_path)
    (tmp_path / "checkpoints" / "20" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"20 is damaged .*; name another one"):
        restore_model_at(toy.ToyTask(), tmp_path, "20")
