"""Several real processes on this machine train as one, lose one of them, and go on."""

import collections
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from moe_jax.training import checkpoint
from tests.training.moe_toy import BATCH, SYSTEM, MoETask

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 240  # seconds; far more than needed, so that a hang fails instead of lasting


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Processes:
    """launch/train.py, n times."""

    def __init__(self, workdir, count, devices, *more, each=(), **environment):
        where = f"--coordinator=127.0.0.1:{free_port()}"
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
            **environment,
        }
        self.logs = [workdir.parent / f"{workdir.name}-{i}of{count}.log" for i in range(count)]
        self.processes = []
        for i, log in enumerate(self.logs):
            command = [sys.executable, "tests/launch/with_toys.py", "launch/train.py"]
            command += ["--config=tests/training/moe_toy.py"]
            command += [f"--workdir={workdir}", where, f"--num_processes={count}"]
            command += [f"--process_id={i}", "--timeout=60", *more, *(each[i] if each else ())]
            with log.open("w") as out:
                self.processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
                    )
                )

    def wait(self):
        """Exit statuses and outputs."""
        try:
            codes = [process.wait(LIMIT) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return codes, [log.read_text() for log in self.logs]

    def finish(self):
        codes, outputs = self.wait()
        assert codes == [0] * len(codes), outputs
        return outputs


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(workdir, step):
    until = time.monotonic() + LIMIT
    while not any(line["step"] >= step for line in lines(workdir)):
        assert time.monotonic() < until, "the processes don't train"
        time.sleep(0.05)


def parameters(workdir):
    model = checkpoint.restore_model(MoETask(), workdir)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def said_so(code, output):
    """Our own line, or JAX's abort where its service noticed first; both say what happened."""
    if code == 2:
        assert "lost the others" in output
        assert "Traceback" not in output
    else:
        assert code == -signal.SIGABRT, output
        assert "another task died" in output


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("hosts") / "unbroken"
    outputs = Processes(workdir, 2, 2).finish()
    return workdir, outputs


@pytest.fixture(scope="module")
def broken(unbroken):
    """A run of two processes of which the second was killed after step 15."""
    workdir = unbroken[0].parent / "broken"
    ids = workdir.parent / "ids"
    ids.mkdir()
    run = Processes(workdir, 2, 2, MOE_TOY_IDS=str(ids), MOE_TOY_PAUSE="0.1")
    wait_for_step(workdir, 15)
    run.processes[1].send_signal(signal.SIGKILL)
    codes, outputs = run.wait()
    return workdir, ids, codes, outputs


@pytest.mark.slow
def test_only_the_first_process_writes(unbroken):
    workdir, outputs = unbroken
    assert "Step 30" in outputs[0]
    assert "Step 30" not in outputs[1]
    losses = [line for line in lines(workdir) if "loss" in line]
    assert [line["step"] for line in losses] == list(range(1, 31))
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert {p.name for p in workdir.iterdir()} >= {"config.json", "evaluation.json", "timing.jsonl"}


@pytest.mark.slow
def test_the_others_say_that_one_was_lost(broken):
    _, _, codes, outputs = broken
    assert codes[1] == -signal.SIGKILL
    said_so(codes[0], outputs[0])


@pytest.mark.slow
def test_restarted_it_ends_bit_for_bit_as_the_unbroken_run(unbroken, broken, tmp_path):
    workdir, ids, *_ = broken
    copy = tmp_path / "copy"
    copy.mkdir()
    subprocess.run(["cp", "-r", workdir, copy / "run"], check=True)
    workdir = copy / "run"
    Processes(workdir, 2, 2, MOE_TOY_IDS=str(ids)).finish()
    assert lines(workdir) == lines(unbroken[0])
    for one, other in zip(parameters(workdir), parameters(unbroken[0]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_four_processes_go_on_where_two_were(unbroken, broken):
    workdir, ids, *_ = broken
    Processes(workdir, 4, 1, MOE_TOY_IDS=str(ids)).finish()
    for one, other in zip(lines(workdir), lines(unbroken[0]), strict=True):
        assert one.keys() == other.keys()
        if "loss" in one:
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    # Whoever read position p, two processes or four: together the same batch, in the same order.
    read = collections.defaultdict(dict)
    for file in ids.glob("*.jsonl"):
        part = file.name.split("-")[0]
        for line in file.read_text().splitlines():
            position, numbers = json.loads(line)
            read[position][part] = numbers
    expected, seen = MoETask().train_data(), collections.Counter()
    for _ in range(30):
        parts = read.pop(json.dumps(expected.get_state()))
        batch = next(expected)["id"].tolist()
        for count in (2, 4):
            group = [parts[f"{i}of{count}"] for i in range(count) if f"{i}of{count}" in parts]
            assert len(group) in (0, count)
            assert not group or [n for ids in group for n in ids] == batch
        assert any(part.endswith("of4") for part in parts) or "0of2" in parts
        seen.update(batch)
    assert set(seen.values()) == {30 * BATCH // 320}  # six epochs: every example six times
    assert {"0of2", "0of4"} <= {f.name.split("-")[0] for f in ids.glob("*.jsonl")}


@pytest.mark.slow
def test_a_lost_first_process_ends_the_others_too(tmp_path):
    workdir = tmp_path / "run"
    run = Processes(workdir, 2, 1, MOE_TOY_PAUSE="0.1")
    wait_for_step(workdir, 2)
    run.processes[0].send_signal(signal.SIGKILL)
    codes, outputs = run.wait()
    said_so(codes[1], outputs[1])


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_with_a_checkpoint(tmp_path):
    workdir = tmp_path / "run"
    run = Processes(workdir, 2, 1, MOE_TOY_PAUSE="0.1")
    wait_for_step(workdir, 3)
    run.processes[1].send_signal(signal.SIGTERM)
    codes, outputs = run.wait()
    assert codes == [143, 143], outputs
    stopped = checkpoint.newest(workdir / "checkpoints").step
    assert f"stopped at step {stopped}" in outputs[0]
    assert 3 <= stopped < 30


@pytest.mark.slow
@pytest.mark.parametrize(
    "each, message",
    [
        (
            ([], ["--config.train.learning_rate=0.5"]),
            "process 1 has config.train.learning_rate=0.5, process 0 has 0.01",
        ),
        ((["--config.train.mesh.expert=3"],) * 2, "3 does not divide the 2 devices"),
    ],
)
def test_every_process_says_what_is_wrong(tmp_path, each, message):
    codes, outputs = Processes(tmp_path / "run", 2, 1, each=each).wait()
    assert codes == [2, 2], outputs
    for output in outputs:
        assert message in output
        assert "Traceback" not in output


CONNECT = "import sys; from moe_jax.training import hosts; hosts.connect(sys.argv[1], 2, int(sys.argv[2]), timeout=3)"


@pytest.mark.slow
@pytest.mark.parametrize(
    "process, message",
    [
        (0, "not all 2 processes came to the coordinator"),
        (1, "did not answer, or not all processes came, within 3 s"),
    ],
)
def test_others_that_never_come(process, message):
    command = [sys.executable, "-c", CONNECT, f"127.0.0.1:{free_port()}", str(process)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 3
    assert message in done.stderr


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--process_id=1"], "--process_id needs --coordinator=HOST:PORT (or auto)"),
        (
            ["--coordinator=here", "--num_processes=2", "--process_id=0"],
            "must be HOST:PORT, or auto",
        ),
        (["--coordinator=a:1", "--timeout=0"], "--timeout=0: must be at least 1"),
        (["--coordinator=a:1", "--process_id=0"], "--num_processes=None: must be at least 1"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "must be from 0 to 1"),
        (
            ["--coordinator=a:1", "--num_processes=two"],
            "--num_processes=two: must be a whole number",
        ),
    ],
)
def test_bad_flags(flags, message, tmp_path, capsys, monkeypatch):
    from launch import _cli as cli
    from launch import _systems as systems
    from launch import train

    monkeypatch.setitem(systems.SYSTEMS, "moe_toy", SYSTEM)
    argv = ["train.py", "--config=tests/training/moe_toy.py", f"--workdir={tmp_path / 'run'}"]
    assert cli.run(train.main, [*argv, *flags]) == 2
    assert message in capsys.readouterr().err
