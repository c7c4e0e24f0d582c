"""A system more costs its own folder and one line of registration: a sketch, run as a user would.

tests/sixth_system has config, task, report and a script, as the systems of moe_jax have them.
"""

import json
import pathlib
import re

import pytest

from launch import _cli as cli
from launch import _systems as systems
from launch import evaluate, train
from moe_jax.reports import visible
from tests.sixth_system import predict
from tests.sixth_system.config import CurveConfig
from tests.sixth_system.task import CurveTask

FOLDER = pathlib.Path(__file__).parent / "sixth_system"
CONFIG = f"--config={FOLDER / 'config.py'}"


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The one line."""
    line = "tests.sixth_system.config:CurveConfig", "tests.sixth_system.task:CurveTask"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(systems.SYSTEMS, "curve", systems.System(*line))
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, registered):
    """A run that was trained by the launch script."""
    folder = tmp_path_factory.mktemp("runs") / "curve"
    assert cli.run(train.main, ["train.py", CONFIG, f"--workdir={folder}"]) == 0
    return folder


def test_it_trains_evaluates_and_reports(workdir, capsys):
    figures = json.loads((workdir / "evaluation.json").read_text())
    assert figures["step"] == 60
    assert figures["figures"]["error"] < 0.2  # the curve's own variance is 0.9
    assert 0 < figures["figures"]["experts_used"] <= 1
    page = (workdir / "report.html").read_text()
    assert "Who has which piece" in page
    assert visible(page) == page
    assert evaluate.main(["evaluate.py", f"--workdir={workdir}"]) is None
    assert "experts_used" in capsys.readouterr().out


def test_its_script_reads_the_run(workdir, capsys):
    predict.main(["predict.py", f"--workdir={workdir}", "--x=1.5"])
    y, expert, step = re.fullmatch(
        r"y=(-?[\d.]+) by expert (\d), step (\d+)\n", capsys.readouterr().out
    ).groups()
    assert abs(float(y) + 0.5) < 0.5
    assert 0 <= int(expert) < 4
    assert step == "60"


def test_its_flags_and_mistakes_are_those_of_every_script(workdir, capsys):
    bad = [CONFIG, f"--workdir={workdir.parent / 'other'}", "--config.gate.k=9"]
    assert cli.run(train.main, ["train.py", *bad]) == 2
    assert "gate.k=9" in capsys.readouterr().err
    assert cli.run(predict.main, ["predict.py", "--workdri=x"]) == 2
    assert "did you mean --workdir" in capsys.readouterr().err
    assert (
        cli.run(train.main, ["train.py", CONFIG, f"--workdir={workdir}", "--config.points=64"]) == 2
    )
    assert "points=256, not 64" in capsys.readouterr().err


def test_it_is_made_of_public_names():
    """What a system of one's own imports is named by a package (or by launch)."""
    for path in FOLDER.glob("*.py"):
        for module in re.findall(r"^\s*from (moe_jax[\w.]*) import", path.read_text(), re.M):
            assert module.count(".") <= 1, (path.name, module)


def test_the_config_makes_the_task():
    assert isinstance(systems.make_task(CurveConfig()), CurveTask)
