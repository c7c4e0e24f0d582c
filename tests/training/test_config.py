"""TrainConfig.validate names the field; configs survive JSON and nothing else does."""

import dataclasses
import json
import threading

import pytest

from moe_jax.common import from_json, to_json
from moe_jax.common.schema import first_difference
from moe_jax.errors import UserError
from moe_jax.training import TrainConfig
from moe_jax.training import workdir as folders
from tests.training import toy


def test_the_defaults_are_valid():
    TrainConfig().validate()


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"steps": 2.0},
        {"steps": True},
        {"steps": 2**31},
        {"seed": -1},
        {"log_every": 0},
        {"eval_every": -1},
        {"checkpoint_every": 0},
        {"keep_checkpoints": 0},
        {"max_bad_steps": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": "0.1"},
        {"weight_decay": -0.1},
        {"grad_clip": float("inf")},
        {"schedule": "linear"},
        {"tensorboard": 1},
        {"warmup_steps": 1000},
    ],
    ids=str,
)
def test_a_bad_field_is_named_with_its_path(change):
    ((name, value),) = change.items()
    config = TrainConfig()
    setattr(config, name, value)  # as a flag does
    with pytest.raises(UserError, match=rf"^config\.train\.{name}=") as caught:
        config.validate("config.train")
    assert str(value) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_comes_back_from_json_as_it_was():
    config = toy.ToyConfig(model=toy.ToyModelConfig(name="a", rates=(1.0, 2.0)))
    config.train.steps = 3
    text = json.dumps(to_json(config))
    assert from_json(toy.ToyConfig, json.loads(text)) == config


def test_whole_numbers_stand_for_floats():
    values = to_json(TrainConfig())
    values["learning_rate"] = 1
    assert isinstance(from_json(TrainConfig, values).learning_rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["train"].update(step=1), r"^config\.train\.step: TrainConfig has no such"),
        (lambda v: v["train"].update(steps="3"), r"^config\.train\.steps='3': must be int"),
        (lambda v: v["train"].update(steps=3.5), r"^config\.train\.steps=3\.5: must be int"),
        (lambda v: v["train"].update(steps=True), r"^config\.train\.steps=True: must be int"),
        (
            lambda v: v["train"].update(tensorboard=1),
            r"^config\.train\.tensorboard=1: must be bool",
        ),
        (lambda v: v["model"].update(name=3), r"^config\.model\.name=3: must be str"),
        (
            lambda v: v["model"].update(rates=["x"]),
            r"^config\.model\.rates\[0\]='x': must be float",
        ),
        (lambda v: v["model"].update(rates=1.0), r"^config\.model\.rates=1\.0: must be"),
        (lambda v: v.update(train=[]), r"^config\.train=\[\]: must be an object"),
    ],
)
def test_json_that_does_not_fit_is_refused(change, message):
    values = to_json(toy.ToyConfig())
    change(values)
    with pytest.raises(UserError, match=message):
        from_json(toy.ToyConfig, values)


def test_a_workdir_is_claimed_once(tmp_path):
    config, workdir = toy.ToyConfig(), tmp_path / "a" / "b"
    folders.claim(workdir, config)
    first = (workdir / "config.json").read_bytes()
    folders.claim(workdir, config)
    assert (workdir / "config.json").read_bytes() == first
    assert [path.name for path in workdir.iterdir()] == ["config.json"]
    assert from_json(toy.ToyConfig, folders.load(workdir)) == config


def test_a_workdir_of_another_run_names_the_first_field_that_differs(tmp_path):
    folders.claim(tmp_path, toy.ToyConfig())
    other = toy.ToyConfig()
    other.train.learning_rate, other.train.seed = 0.5, 4
    with pytest.raises(UserError, match=r"train\.learning_rate=0\.03, not 0\.5"):
        folders.claim(tmp_path, other)


def test_a_run_from_before_a_field_existed_has_its_default(tmp_path):
    folders.claim(tmp_path, toy.ToyConfig())
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    del values["train"]["max_bad_steps"], values["model"]["rates"]
    file.write_text(json.dumps(values))
    assert from_json(toy.ToyConfig, folders.load(tmp_path)) == toy.ToyConfig()
    assert not folders.claim(tmp_path, toy.ToyConfig())
    assert json.loads(file.read_text()) == values
    other = toy.ToyConfig()
    other.train.max_bad_steps = 5
    with pytest.raises(UserError, match=r"train\.max_bad_steps=\d+, not 5"):
        folders.claim(tmp_path, other)
    values["gone"] = 3
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"gone=3, not nothing|model\.rates=nothing"):
        folders.claim(tmp_path, toy.ToyConfig())


def test_two_runs_that_start_at_once_do_not_both_get_the_folder(tmp_path):
    refused, gate = [], threading.Barrier(8)

    def start(seed):
        config = toy.ToyConfig()
        config.train.seed = seed
        gate.wait()
        try:
            folders.claim(tmp_path, config)
        except UserError:
            refused.append(seed)

    threads = [threading.Thread(target=start, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = folders.load(tmp_path)["train"]["seed"]
    assert sorted([*refused, winner]) == list(range(8))


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_broken_config_json_is_one_clear_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        folders.load(tmp_path)


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        folders.claim(tmp_path / "file" / "run", toy.ToyConfig())


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_lives(tmp_path):
    def hold():
        with folders.lock(tmp_path):
            return True

    with folders.lock(tmp_path), pytest.raises(UserError, match="another process"):
        hold()
    assert hold()


def test_first_difference_tells_kinds_and_missing_fields_apart():
    difference = first_difference
    assert difference({"a": {"b": 1}}, {"a": {"b": 1.0}}) is None
    assert difference({"a": True}, {"a": 1}) == ("a", "True", "1")
    assert difference({"a": {"b": 1}}, {"a": {"c": 1}}) == ("a.c", "nothing", "1")
    assert difference({"a": 1, "b": 2}, {"a": 1}) == ("b", "2", "nothing")


def test_every_field_of_the_train_config_is_checked():
    for field in dataclasses.fields(TrainConfig):
        config = TrainConfig()
        setattr(config, field.name, [1])
        with pytest.raises(UserError, match=rf"^train\.{field.name}="):
            config.validate("train")


def fail_in(workdir, write=None):
    """A run that fails, perhaps after it wrote a file."""
    with folders.claimed(workdir, toy.ToyConfig()), folders.lock(workdir):
        if write is not None:
            (workdir / write).write_text("{}\n")
        raise UserError("no corpus")


@pytest.mark.parametrize("existed", [True, False])
def test_a_run_that_never_began_leaves_the_folder_as_it_was(tmp_path, existed):
    workdir = tmp_path / "run"
    if existed:
        workdir.mkdir()
    with pytest.raises(UserError, match="no corpus"):
        fail_in(workdir)
    assert workdir.exists() == existed
    assert not existed or list(workdir.iterdir()) == []


def test_a_run_that_wrote_something_keeps_its_folder(tmp_path):
    with pytest.raises(UserError, match="no corpus"):
        fail_in(tmp_path, write="metrics.jsonl")
    assert (tmp_path / "config.json").exists()
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="no corpus"):  # not a new run any more
        fail_in(tmp_path)
    assert (tmp_path / "config.json").exists()
