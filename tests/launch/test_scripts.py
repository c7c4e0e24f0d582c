"""launch/train.py and launch/evaluate.py as a user meets them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from launch import _cli as cli
from launch import _configs, evaluate, train
from launch import _systems as systems
from moe_jax.common import Interrupted, to_json
from moe_jax.errors import UserError
from tests.training import moe_toy, toy

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "tests/training/toy.py"


@pytest.fixture(autouse=True)
def toy_system(monkeypatch):
    """The scripts run in the repository's root and know the toy."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(systems.SYSTEMS, "toy", toy.SYSTEM)
    monkeypatch.setitem(systems.SYSTEMS, "moe_toy", moe_toy.SYSTEM)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # run() replaces it


def launch(main, *argv):
    return cli.run(main, ["script", *map(str, argv)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(workdir, what was printed) of a whole run, started as a process in another folder."""
    workdir = tmp_path_factory.mktemp("run") / "new"
    done = process(f"--config={ROOT / CONFIG}", f"--workdir={workdir}", "--config.train.steps=30")
    out, err = done.communicate()
    assert done.returncode == 0, err
    return workdir, out


def process(*argv):
    scripts = [ROOT / "tests" / "launch" / "with_toys.py", ROOT / "launch" / "train.py"]
    command = [sys.executable, "-W", "error", *map(str, scripts), *argv]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "kernels")}
    return subprocess.Popen(
        command,
        env=environment,
        cwd="/",
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def figures(out):
    return dict(re.findall(r"│ (\S+)\s+│\s+(\S+) │", out))


def test_training_ends_with_the_figures_and_the_files(trained):
    workdir, out = trained
    saved = json.loads((workdir / "evaluation.json").read_text())
    assert saved["step"] == 30
    assert figures(out) == {"accuracy": f"{saved['figures']['accuracy']:.4g}"}
    assert saved["figures"]["accuracy"] > 0.8
    assert out.startswith("Step 30\n")
    for name in ("checkpoints/", "config.json", "evaluation.json", "metrics.jsonl", "report.html"):
        assert f"{workdir}/{name}\n" in out
    config = json.loads((workdir / "config.json").read_text())
    assert (config["system"], config["train"]["steps"]) == ("toy", 30)


def test_a_finished_run_is_only_shown(trained, capsys, monkeypatch):
    workdir, out = trained
    monkeypatch.setattr(toy.ToyTask, "evaluate", None)
    arguments = (f"--workdir={workdir}", f"--config={CONFIG}", "--config.train.steps", "30")
    assert launch(train.main, *arguments) == 0
    again = capsys.readouterr().out
    assert again.startswith("This run is finished, at step 30\n")
    assert figures(again) == figures(out)


def test_evaluating_restores_the_model(trained, tmp_path, capsys):
    workdir, out = trained
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    (copy / "evaluation.json").unlink()
    assert launch(evaluate.main, f"--workdir={copy}") == 0
    assert figures(capsys.readouterr().out) == figures(out)
    assert (copy / "evaluation.json").read_bytes() == (workdir / "evaluation.json").read_bytes()


def test_evaluating_with_a_damaged_newest_checkpoint_warns_and_uses_the_one_before(
    trained, tmp_path, capsys
):
    copy = tmp_path / "copy"
    shutil.copytree(trained[0], copy)
    (copy / "checkpoints" / "30" / "run.json").write_text("{")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert launch(evaluate.main, f"--workdir={copy}") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Step 24\n")
    assert re.fullmatch(r"warning: checkpoint .*30 is damaged .*\n", captured.err)
    assert json.loads((copy / "evaluation.json").read_text())["step"] == 24


def test_another_config_in_the_same_folder_is_refused(trained, capsys):
    assert launch(train.main, f"--workdir={trained[0]}", f"--config={CONFIG}") == 2
    assert "holds a run with train.steps=30, not 40" in capsys.readouterr().err


def test_overrides_reach_the_config():
    config, flags = cli.parse_with_config(
        [
            "script",
            "--config.train.steps=12",
            f"--config={CONFIG}",
            "--config.train.learning_rate",
            "1",
            "--config.train.tensorboard",
            "--config.model.name=x",
            "--config.model.rates=(1.0, 2.0)",
            "--workdir=w",
        ],
        train.TrainFlags,
    )
    expected = toy.ToyConfig(model=toy.ToyModelConfig(name="x", rates=(1.0, 2.0)))
    expected.train.steps, expected.train.learning_rate = 12, 1.0
    expected.train.tensorboard = True
    assert to_json(config) == to_json(expected)
    assert isinstance(config.train.learning_rate, float)
    assert flags == train.TrainFlags(workdir=Path("w"))


GOOD = (f"--config={CONFIG}", "--workdir=never")
MISTAKES = {
    "no config": (["--workdir=w"], r"--config=FILE is missing: a file of configs/"),
    "no workdir": ([f"--config={CONFIG}"], r"--workdir=DIR is missing: the folder for"),
    "no such file": (["--config=configs/nothing_of.py"], r"nothing_of\.py: no such file"),
    "misspelt field": ([*GOOD, "--config.train.step=3"], r"mean --config\.train\.steps\?"),
    "misspelt group": ([*GOOD, "--config.trian.steps=3"], r"mean --config\.train\.steps\?"),
    "no group": ([*GOOD, "--config.learning_rate=3"], r"mean --config\.train\.learning_rate\?"),
    "misspelt negation": ([*GOOD, "--noconfig.train.tensorbord"], r"config\.train\.tensorboard\?"),
    "a group": (
        [*GOOD, "--config.train=3"],
        r"a group of fields; set one, such as --config\.train",
    ),
    "bad integer": ([*GOOD, "--config.train.steps=ten"], r"--config\.train\.steps=ten"),
    "bad number": ([*GOOD, "--config.train.grad_clip=x"], r"--config\.train\.grad_clip=x"),
    "bad truth": ([*GOOD, "--config.train.tensorboard=2"], r"--config\.train\.tensorboard=2"),
    "bad tuple": ([*GOOD, "--config.model.rates=("], r"--config\.model\.rates\[0\]='\('"),
    "no value": ([*GOOD, "--config.train.steps"], r"config\.train\.steps"),
    "bad value": ([*GOOD, "--config.train.steps=0"], r"train\.steps=0: must be from 1 to"),
    "own field": ([*GOOD, "--config.model.width=0"], r"model\.width=0: must be at least 1"),
    "unknown flag": ([*GOOD, "--wrkdir=w"], r"--wrkdir: no such flag; did you mean --workdir\?"),
    "no flag": ([*GOOD, "w"], r"'w': not a flag"),
}


@pytest.mark.parametrize(("argv", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_on_stderr_and_exit_2(argv, message, tmp_path, capsys):
    never = tmp_path / "never"
    assert launch(train.main, *(arg.replace("=never", f"={never}") for arg in argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"error: .*\n", captured.err)
    assert re.search(message, captured.err)
    assert not never.exists()


def test_a_misspelt_flag_as_a_process_shows_no_traceback(tmp_path):
    done = process(f"--config={ROOT / CONFIG}", f"--workdir={tmp_path}", "--config.train.stepz=3")
    out, err = done.communicate()
    assert (done.returncode, out) == (2, "")
    assert err == (
        "error: --config.train.stepz: no such field; did you mean --config.train.steps?\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", r"line 1: invalid syntax"),
        ("x = 1", r"must define get_config\(\)"),
        ("def get_config(): return {}", r"must return a dataclass .* not dict"),
    ],
)
def test_a_file_that_is_no_config_says_why(tmp_path, capsys, text, message):
    (tmp_path / "bad.py").write_text(text)
    assert launch(train.main, f"--config={tmp_path / 'bad.py'}", "--workdir=never") == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_config_can_take_a_text(tmp_path):
    (tmp_path / "sized.py").write_text(
        "from tests.training import moe_toy, toy\n"
        "def get_config(width='8'):\n"
        "    return toy.ToyConfig(model=toy.ToyModelConfig(width=int(width)))\n"
    )
    assert _configs.load_config_file(f"{tmp_path}/sized.py").model.width == 8
    assert _configs.load_config_file(f"{tmp_path}/sized.py:9").model.width == 9


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
@pytest.mark.parametrize("main", [train.main, evaluate.main])
def test_help_is_short(main, argv, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert launch(main, *argv) == 0
    text = capsys.readouterr().out
    assert "python launch/" in text
    assert "--workdir=DIR" in text
    assert len(text.splitlines()) < 35


def test_help_with_a_config_lists_its_fields(capsys):
    assert launch(train.main, f"--config={CONFIG}", "--help") == 0
    out = capsys.readouterr().out
    assert "  --config.train.learning_rate=0.03\n" in out
    assert "  --config.model.rates=(0.1,)\n" in out


def test_evaluating_a_folder_without_a_run(tmp_path, capsys):
    assert launch(evaluate.main, f"--workdir={tmp_path}") == 2
    assert "no config.json, so no run was started here" in capsys.readouterr().err


def test_a_system_that_is_not_known(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"system": "rationals"}')
    assert launch(evaluate.main, f"--workdir={tmp_path}") == 2
    said = capsys.readouterr().err
    assert "system='rationals': must be one of" in said
    assert "misrouting" in said
    assert "rationale" in said


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("two\nlines"), 2, "error: two lines\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (Interrupted(signal.SIGTERM, 7), 143, "SIGTERM: stopped at step 7; the same command"),
        (Interrupted(signal.SIGINT, 7), 130, "SIGINT: stopped at step 7; the same command"),
    ],
)
def test_exit_codes(error, status, said, capsys):
    def main(argv):
        raise error

    assert cli.run(main, ["script"]) == status
    assert capsys.readouterr().err.startswith(said)


def test_faults_of_the_program_keep_their_traceback():
    def main(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(main, ["script"])


def test_output_that_nobody_reads_is_no_fault():
    run = process("--help")
    run.stdout.close()
    err = run.stderr.read()
    run.stderr.close()
    assert (run.wait(), err) == (141, "")


def test_sigterm_leaves_a_checkpoint_that_the_same_command_goes_on_from(trained, tmp_path):
    workdir, _ = trained
    command = (
        f"--config={ROOT / CONFIG}",
        f"--workdir={tmp_path / 'run'}",
        "--config.train.steps=1000000",
        "--config.train.checkpoint_every=1000000",
    )
    run = process(*command)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size > 300):
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.02)
    run.terminate()
    _, err = run.communicate()
    assert run.returncode == 143, err
    (step,) = re.findall(r"^SIGTERM: stopped at step (\d+);", err, re.MULTILINE)
    steps = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert max(steps) == int(step) > 7
    # The lines so far are those of the unbroken run.
    unbroken = (workdir / "metrics.jsonl").read_text().splitlines()
    assert metrics.read_text().splitlines()[:2] == unbroken[:2]


def test_a_dry_run_prints_its_tables_and_leaves_nothing(capsys):
    config = "--config=tests/training/moe_toy.py"
    before = sorted(ROOT.iterdir())
    assert launch(train.main, config, "--dry_run=64", "--config.train.mesh.expert=4") == 0
    out = capsys.readouterr().out
    assert out.startswith("Dry run on 64 devices (imagined); no step was made\n")
    for text in ("Mesh", "moe.w_in_edf", "sum, without activations", "all_to_all", "bytes sent"):
        assert text in out
    assert launch(train.main, config, "--config.train.mesh.expert=1", "--dry_run") == 0
    assert "1 device (here)" in capsys.readouterr().out
    assert sorted(ROOT.iterdir()) == before


def test_profiled_steps_leave_a_trace(tmp_path):
    flags = (f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", "--config.train.steps=4")
    assert launch(train.main, *flags, "--profile_steps=2:3") == 0
    assert list((tmp_path / "run" / "profile").glob("plugins/profile/*/*.xplane.pb"))


def test_a_finished_run_is_not_profiled(trained, capsys):
    flags = (f"--config={CONFIG}", f"--workdir={trained[0]}", "--config.train.steps=30")
    assert launch(train.main, *flags, "--profile_steps=2:3") == 2
    assert "is finished; give another folder" in capsys.readouterr().err


def no_number(*_):
    return jnp.log(-jnp.ones(())), {}


@pytest.mark.parametrize("given", ["--debug_nans", "--debug_nans=true"])
def test_debug_nans_stops_at_the_first(tmp_path, given, monkeypatch):
    monkeypatch.setattr(toy.ToyTask, "loss", no_number)
    try:
        with pytest.raises(FloatingPointError, match="nan"):
            launch(train.main, f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", given)
    finally:
        jax.config.update("jax_debug_nans", False)


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--dry_run=0", "--dry_run=0: must be at least 1 device"),
        ("--dry_run=many", "--dry_run=many: must be a whole number"),
        ("--profile_steps=5", "--profile_steps=5: must be FIRST:LAST"),
        ("--profile_steps=50:60", "the steps that are left are 1 to"),
        ("--debug_nans=perhaps", "--debug_nans=perhaps: must be true or false"),
        ("--config.train.mesh.expert=3", "3 does not divide the 1 devices"),
    ],
)
def test_mistakes_in_the_newer_flags(flag, message, tmp_path, capsys):
    assert launch(train.main, f"--config={CONFIG}", f"--workdir={tmp_path / 'new'}", flag) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "new").exists()
