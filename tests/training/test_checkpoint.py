"""Checkpoints under damage, full disks, changed models and kills."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.errors import UserError
from moe_jax.training import DamagedCheckpointWarning, TrainConfig, checkpoint, restore_model, train
from moe_jax.training import saver as saver_module
from moe_jax.training.checkpoint import list_steps, newest
from moe_jax.training.retention import Retention
from moe_jax.training.saver import RunRecord, Saver
from moe_jax.training.state import Parts, first_state
from moe_jax.training.step import make_optimizer
from tests.training import toy
from tests.training.test_loop import assert_same_models, config, lines

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, model): checkpoints of steps 20 and 30."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(toy.ToyTask(), config(), workdir)


def biggest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder):
    path = biggest(folder / "model")
    path.write_bytes(path.read_bytes()[:-7])


def empty(folder):
    biggest(folder / "optimizer").write_bytes(b"")


def flip(folder):
    path = biggest(folder / "model")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_record(folder):
    path = folder / "run.json"
    path.write_text(path.read_text().replace('\\"step\\": 30', '\\"step\\": 31'))


def cut_record(folder):
    path = folder / "run.json"
    path.write_text(path.read_text()[:-40])


DAMAGES = {
    "truncated": truncate,
    "emptied": empty,
    "one bit": flip,
    "file gone": lambda folder: biggest(folder / "model").unlink(),
    "model gone": lambda folder: shutil.rmtree(folder / "model"),
    "record gone": lambda folder: (folder / "run.json").unlink(),
    "record changed": flip_record,
    "record cut": cut_record,
    "all gone": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(finished, tmp_path, damage):
    workdir, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    damage(copy / "checkpoints" / "30")
    with pytest.warns(DamagedCheckpointWarning, match=r"30 is damaged .*; trying the one before"):
        assert newest(copy / "checkpoints").step == 20


def test_after_damage_the_run_is_finished_again_bit_for_bit(finished, tmp_path):
    workdir, model = finished
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    flip(copy / "checkpoints" / "30")
    with pytest.warns(DamagedCheckpointWarning):
        assert_same_models(train(toy.ToyTask(), config(), copy), model)
    assert (copy / "metrics.jsonl").read_bytes() == (workdir / "metrics.jsonl").read_bytes()
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["20", "30", "30.damaged"]
    assert_same_models(restore_model(toy.ToyTask(), copy), model)


def test_when_all_are_damaged_the_user_decides(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    for step in (20, 30):
        truncate(copy / "checkpoints" / str(step))
    with (
        pytest.warns(DamagedCheckpointWarning),
        pytest.raises(UserError, match="every checkpoint is damaged"),
    ):
        train(toy.ToyTask(), config(), copy)


def test_without_a_checkpoint_there_is_nothing_to_restore(tmp_path):
    assert newest(tmp_path / "checkpoints") is None
    with pytest.raises(UserError, match="no checkpoint; train first"):
        restore_model(toy.ToyTask(), tmp_path)


def test_it_carries_config_position_sums_and_the_hash_of_every_file(finished):
    workdir, _ = finished
    folder = workdir / "checkpoints" / "20"
    run = newest(workdir / "checkpoints").run
    assert run["step"] == 30
    earlier = json.loads(json.loads((folder / "run.json").read_text())["run"])
    assert earlier["config"]["train"]["steps"] == 30
    # Steps 15 to 20 are not in metrics.jsonl yet.
    assert earlier["window"]["taken"] == 6
    data = toy.ToyTask().train_data()
    for _ in range(20):
        next(data)
    assert earlier["data"] == data.get_state()
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert set(earlier["files"]) == files - {"run.json"}
    for name, digest in earlier["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_few_are_kept(tmp_path, keep):
    train(toy.ToyTask(), config(keep_checkpoints=keep), tmp_path)
    assert list_steps(tmp_path / "checkpoints") == [0, 10, 20, 30][-keep:]
    assert len(list((tmp_path / "checkpoints").iterdir())) == keep


def test_what_a_kill_left_half_done_is_cleared_away(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    for name in ("25.partial", "25.partial.orbax-checkpoint-tmp", "10.deleted"):
        shutil.copytree(copy / "checkpoints" / "20", copy / "checkpoints" / name)
    assert list_steps(copy / "checkpoints") == [20, 30]
    shutil.rmtree(copy / "checkpoints" / "30")
    train(toy.ToyTask(), config(), copy)
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["20", "30"]


def some_state(seed=0):
    model = toy.Toy(rngs=nnx.Rngs(seed))
    parts = Parts(model, toy.ToyTask.trainable)
    return first_state(*parts.split(model), make_optimizer(TrainConfig()), jax.random.key(seed))


RECORD = RunRecord(config={"train": {}}, data={}, window={})


def test_the_state_may_be_donated_while_it_is_saved(tmp_path):
    state = some_state()
    before = {name: np.asarray(leaf).copy() for name, leaf in state.params.items()}
    with Saver(tmp_path, keep=Retention(1)) as saver:
        saver.save(state, RECORD)
        double = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)
        double(state.params)
        saver.wait()
        assert not saver.busy()
    restored = checkpoint.restore_state(newest(tmp_path), some_state(1))
    for name, leaf in before.items():
        np.testing.assert_array_equal(restored.params[name], leaf)
    assert (jax.random.key_data(restored.key) == jax.random.key_data(jax.random.key(0))).all()


FAILURES = {
    "from the system": OSError(errno.ENOSPC, "No space left on device"),
    "from TensorStore": ValueError(
        "RESOURCE_EXHAUSTED: Failed writing: Failed to write 9 bytes [os_error_code='28']"
    ),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_full_disk_is_one_clear_line_and_the_older_checkpoint_stays(
    tmp_path, monkeypatch, failure
):
    real = saver_module.ocp.save_checkpointables

    def save(path, arrays):
        real(path, arrays)
        if path.name.startswith("20"):
            raise failure

    monkeypatch.setattr(saver_module.ocp, "save_checkpointables", save)
    with pytest.raises(UserError) as caught:
        train(toy.ToyTask(), config(), tmp_path)
    message = str(caught.value)
    assert "the checkpoint of step 20 was not saved (No space left on device)" in message
    assert message.endswith("the newest one left is that of step 10")
    assert "\n" not in message
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["0", "10"]
    monkeypatch.undo()
    train(toy.ToyTask(), config(), tmp_path)
    assert lines(tmp_path)[-1]["step"] == 30


def test_other_failures_of_a_save_keep_their_type(tmp_path, monkeypatch):
    def save(path, arrays):
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(saver_module.ocp, "save_checkpointables", save)
    saver = Saver(tmp_path, keep=Retention(1)).__enter__()
    saver.save(some_state(), RECORD)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        saver.wait()
    saver.__exit__(None)


class Wider(toy.ToyTask):
    def init(self, rngs):
        model = super().init(rngs)
        model.mean = nnx.BatchStat(jnp.zeros(9))
        return model


class Longer(toy.ToyTask):
    def init(self, rngs):
        model = super().init(rngs)
        model.layers.append(nnx.Linear(3, 3, rngs=rngs))
        return model


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Wider(), r"float32\[6\] at rest/mean, the model needs float32\[9\]"),
        (Longer(), r"nothing at params/layers\.2\.bias, the model needs float32\[3\]"),
    ],
)
def test_a_checkpoint_of_another_model_names_the_leaf(finished, task, message):
    with pytest.raises(UserError, match=message):
        restore_model(task, finished[0])


def start(workdir, settings):
    script = (
        "import json, sys\n"
        "from moe_jax.training.config import TrainConfig\n"
        "from moe_jax.training.loop import train\n"
        "from tests.training import toy\n"
        "train(toy.ToyTask(), TrainConfig(**json.loads(sys.argv[2])), sys.argv[1])\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    command = [sys.executable, "-W", "error", "-c", script, str(workdir), json.dumps(settings)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_a_new_checkpoint(folder, process):
    before = list_steps(folder)
    while list_steps(folder) == before:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def test_a_run_killed_again_and_again_ends_like_one_that_was_not(tmp_path):
    """SIGKILL at random moments, in steps and in the middle of saving: the same bits."""
    settings = {"steps": 90, "learning_rate": 0.03, "log_every": 7, "eval_every": 20}
    unbroken = train(toy.ToyTask(), TrainConfig(**settings), tmp_path / "unbroken")
    settings |= {"checkpoint_every": 2}
    chance, killed = random.Random(0), tmp_path / "killed"
    steps = []
    for _ in range(3):
        with start(killed, settings) as process:
            wait_for_a_new_checkpoint(killed / "checkpoints", process)
            time.sleep(chance.uniform(0, 0.4))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        steps.append(list_steps(killed / "checkpoints")[-1])
    assert steps == sorted(steps)
    assert steps[0] < steps[-1] < 90
    with start(killed, settings) as process:
        errors = process.stderr.read()
    assert process.returncode == 0, errors
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restored = restore_model(toy.ToyTask(), killed)
    assert_same_models(restored, unbroken)
    written = (tmp_path / "unbroken" / "metrics.jsonl").read_bytes()
    assert (killed / "metrics.jsonl").read_bytes() == written
