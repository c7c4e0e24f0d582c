"""What older code began, later code goes on with: scripts/make_stored_runs.py tells who made what.

A run, a profile and a study lie in tests/golden/stored_runs as an older commit left them, with the
commands that began them. The same commands are given again here. What must come out is what that
commit left where nothing stopped it; figures are compared within what another machine's and
another JAX's rounding may change.
"""

import json
import shutil
from pathlib import Path

import pytest

from launch import _cli as cli
from launch import evaluate, misroute, profile_routing, train

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "tests" / "golden" / "stored_runs"
SCRIPTS = {"train": train, "misroute": misroute, "profile_routing": profile_routing}
PROMPT = 1 / 8  # of a level: a near tie may go the other way after steps that round differently

pytestmark = pytest.mark.usefixtures("own_warnings", "quick")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a copy of what is stored, in which the commands run."""
    shutil.copytree(STORED, tmp_path / "stored")
    monkeypatch.chdir(tmp_path / "stored")
    return tmp_path / "stored"


def again(name, *more):
    """The exit status of the command that began a run."""
    script, *flags = json.loads((STORED / "commands.json").read_text())[name]
    flags = [flag.format(root=ROOT) for flag in flags]
    return cli.run(SCRIPTS[script].main, [script, *flags, *more])


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_close(mine, theirs, within, where=""):
    """The same JSON; numbers within a tolerance."""
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys(), where
        for name in theirs:
            assert_close(mine[name], theirs[name], within, f"{where}.{name}")
    elif isinstance(theirs, list):
        assert len(mine) == len(theirs), where
        for i, pair in enumerate(zip(mine, theirs, strict=True)):
            assert_close(*pair, within, f"{where}[{i}]")
    elif isinstance(theirs, float):
        assert mine == pytest.approx(theirs, **within), where
    else:
        assert mine == theirs, where


def assert_went_on(folder, name):
    """The run in the folder has done the steps that were left, and no others."""
    begun, whole = STORED / name, STORED / "expected" / name
    for file in ("metrics.jsonl", "timing.jsonl"):
        assert (folder / file).read_bytes().startswith((begun / file).read_bytes())
    assert (folder / "config.json").read_bytes() == (begun / "config.json").read_bytes()
    assert [line["step"] for line in lines(folder / "timing.jsonl")] == [8, 16, 24, 32, 40]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["40"]
    mine, theirs = lines(folder / "metrics.jsonl"), lines(whole / "metrics.jsonl")
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    for line, expected in zip(mine, theirs, strict=True):
        within = {"abs": PROMPT} if "eval/accuracy" in expected else {"rel": 1e-3, "abs": 1e-5}
        assert_close(line, expected, within, f"step {expected['step']}")
    assert json.loads((folder / "finished.json").read_text()) == {"step": 40}


def test_a_training_run_goes_on(here):
    assert again("more") == 0
    assert_went_on(here / "more", "more")
    mine, theirs = (
        json.loads((folder / "evaluation.json").read_text())
        for folder in (here / "more", STORED / "expected" / "more")
    )
    assert_close(mine, theirs, {"abs": PROMPT})


def test_a_stopped_training_run_is_evaluated(here):
    before = contents(here / "more")
    assert cli.run(evaluate.main, ["evaluate", "--workdir=more"]) == 0
    after = contents(here / "more")
    assert {name: after[name] for name in before} == before
    theirs = json.loads((STORED / "expected" / "more_stopped.json").read_text())
    assert_close(json.loads(after["evaluation.json"]), theirs, {"rel": 1e-6})


def test_a_finished_training_run_is_only_shown(here, capsys):
    before = contents(here / "sums")
    assert again("sums") == 0
    assert contents(here / "sums") == before
    assert "Held-out prompts" in capsys.readouterr().out


def test_a_rationale_run_goes_on(here):
    cache = contents(here / "cache")
    assert again("rationale") == 0
    assert contents(here / "cache") == cache  # the states were found there
    assert_went_on(here / "rationale", "rationale")
    mine, theirs = (
        json.loads((folder / "evaluation.json").read_text())
        for folder in (here / "rationale", STORED / "expected" / "rationale")
    )
    assert_close(mine, theirs, {"rel": 1e-3, "abs": 1e-4})


def test_a_study_goes_on_from_a_stored_profile(here, capsys):
    stored, begun = contents(here / "profile"), contents(here / "study")
    assert again("study") == 0
    after = contents(here / "study")
    assert after["config.json"] == begun["config.json"]
    assert after["conditions.jsonl"].startswith(begun["conditions.jsonl"])
    done, all_runs = (found["conditions.jsonl"].count(b"\n") for found in (begun, after))
    keys = [line["key"] for line in lines(here / "study" / "conditions.jsonl")]
    assert len(set(keys)) == all_runs
    assert f"going on: {done} of {all_runs} runs were done" in capsys.readouterr().err
    theirs = json.loads((STORED / "expected" / "study" / "misroute.json").read_text())
    assert_close(json.loads(after["misroute.json"]), theirs, {"rel": 1e-3, "abs": 1e-5})
    assert contents(here / "profile") == stored


def test_another_profile_is_the_stored_one(here):
    assert again("profile", "--workdir=another") == 0
    mine, theirs = (
        json.loads((here / name / "profile.json").read_text()) for name in ("another", "profile")
    )
    assert_close(mine, theirs, {"rel": 1e-4, "abs": 1e-6})
