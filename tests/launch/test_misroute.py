"""launch/misroute.py as a user meets it: one tiny study, stopped, gone on with, and bad input."""

import csv
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from launch import _cli as cli
from launch import misroute as script
from moe_jax.misrouting import (
    MisrouteConfig,
    Prompt,
    misroute_files,
    study,
    study_runs,
    write_prompts,
)
from tests.misrouting import small_lm

SMALL = (
    *("--interventions=suppress,random@answer", "--controls=0", "--max_new_tokens=5"),
    *("--answer_tokens=3", "--faithfulness_prompts=2", "--batch_size=8"),
)
ROOT = Path(__file__).resolve().parents[2]
FILES = ["conditions.jsonl", "config.json", "misroute.csv", "misroute.html", "misroute.json"]


pytestmark = pytest.mark.usefixtures("own_warnings", "quick")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """(folder of a model with 6 experts in layer 1 alone, file of 6 prompts)."""
    folder = tmp_path_factory.mktemp("given")
    prompts = [
        Prompt(f"{i}+2=\n", 1.0 + i % 2, str(i + 2), explanation=f"{i}+2={i + 2}\n")
        for i in range(6)
    ]
    write_prompts(prompts, folder / "prompts.jsonl")
    return small_lm.write(folder / "model", "qwen3_moe"), folder / "prompts.jsonl"


def call(*flags):
    return cli.run(script.main, ["misroute.py", *map(str, flags)])


def flags(given, workdir, *more):
    model, prompts = given
    return f"--model={model}", f"--prompts={prompts}", f"--workdir={workdir}", *SMALL, *more


class Run(NamedTuple):
    """A study, the flags that it could have been started with, and what the example found."""

    workdir: Path
    flags: tuple
    names: dict


@pytest.fixture(scope="module")
def run(given, tmp_path_factory):
    """Both stages from Python, as docs/misrouting.md shows."""
    docs = (ROOT / "docs" / "misrouting.md").read_text(encoding="utf-8")
    section = docs.split("## From Python: both stages\n")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    folder = tmp_path_factory.mktemp("run")
    places = {"MODEL": given[0], "prompts.jsonl": given[1]}
    places |= {f"runs/{name}": folder / "new" / name for name in ("profile", "misroute")}
    for name, path in places.items():
        assert f'"{name}"' in code
        code = code.replace(f'"{name}"', repr(str(path)))
    names = {}
    exec(code, names)
    mine = flags(given, places["runs/misroute"], f"--profile={places['runs/profile']}")
    return Run(places["runs/misroute"], mine, names)


def profile(folder, **changes):
    values = {
        "selected": [[1, 4]],
        "test_prompts": [5, 0, 2],
        "expert_layers": [1],
        "num_experts": 6,
        "usage_mean": [[0.1, 0.2, 0.3, 0.2, 0.1, 0.1]],
        "z": [[0.5, -1.0, 0.25, 2.0, -3.0, None]],
    }
    (folder / "profile.json").write_text(json.dumps(values | changes))
    return f"--profile={folder}"


def test_a_whole_study(run):
    workdir, _, names = run
    assert sorted(p.name for p in workdir.iterdir() if p.name != ".lock") == FILES
    values = json.loads((workdir / "misroute.json").read_text())
    chosen = names["found"].selection
    assert values["selected"] == [[1, expert] for expert in chosen.expert.tolist()]
    assert values["prompts"] == len(chosen.half_b)
    assert values == misroute_files.to_json(names["result"])
    assert values["measured"] == 2
    assert all(values["zero_dose"].values())
    rows = [(row["spec"], row["experts"]) for row in values["rows"]]
    assert rows == [
        *(("suppress@all", "selected"), ("random@answer", "selected")),
        ("suppress@all", "opposite"),
    ]
    lines = list(csv.DictReader(io.StringIO((workdir / "misroute.csv").read_text())))
    assert {line["spec"] for line in lines} == {"suppress@all", "random@answer"}
    page = (workdir / "misroute.html").read_text()
    assert "1 expert selected by Stage 1, tested on the " in page
    assert "max_new_tokens = 5" in page
    config = json.loads((workdir / "config.json").read_text())
    assert config["system"] == "misrouting-study"
    assert config["config"]["interventions"] == ["suppress@all", "random@answer"]


def test_going_on_gives_the_same_bit_for_bit(run, tmp_path, capsys):
    workdir, mine, _ = run
    before = {name: (workdir / name).read_bytes() for name in FILES}
    lines = before["conditions.jsonl"].splitlines(keepends=True)
    (workdir / "conditions.jsonl").write_bytes(b"".join(lines[:-3]) + lines[-3][:50])
    for name in FILES[2:]:
        (workdir / name).unlink()
    assert call(*mine) == 0
    out, err = capsys.readouterr()
    assert f"going on: {len(lines) - 3} of {len(lines)} runs were done" in err
    assert f"run {len(lines) - 2} of {len(lines)}: " in err
    assert "of 2 interventions change accuracy" in out
    assert str(workdir / "misroute.html") in out
    assert {name: (workdir / name).read_bytes() for name in FILES} == before


def test_a_finished_study_is_only_shown(run, capsys, monkeypatch):
    workdir, mine, _ = run
    before = (workdir / "misroute.html").read_bytes()
    (workdir / "misroute.html").write_text("old")
    monkeypatch.setattr(study_runs, "write_answers", None)
    assert call(*mine) == 0
    out, err = capsys.readouterr()
    assert "runs were done: only the files are written anew" in err
    assert "suppress" in out
    assert (workdir / "misroute.html").read_bytes() == before


@pytest.mark.parametrize("whole", [False, True])
def test_recorded_routes_are_those_of_the_tested_prompts(given, tmp_path, monkeypatch, whole):
    """The profile picks prompts 5, 0 and 2 of the file; so do the routes."""
    seen = {}

    def run_study(*_, recorded, **__):
        seen["recorded"] = recorded
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_study", run_study)
    routes = [np.full((5, 1, 3), [i % 6, (i + 1) % 6, (i + 2) % 6]) for i in range(6)]
    if whole:  # a row for the layer without experts too
        routes = [np.pad(one, ((0, 0), (1, 0), (0, 0))) for one in routes]
    np.savez(tmp_path / "routes.npz", *routes)
    more = (profile(tmp_path), "--interventions=replay", f"--routes={tmp_path / 'routes.npz'}")
    assert call(*flags(given, tmp_path / "run", *more)) == 130
    assert [int(one[0, 0, 0]) for one in seen["recorded"]] == [5, 0, 2]


def test_another_study_in_the_same_folder(run, tmp_path, capsys):
    _, mine, names = run
    assert call(*mine, "--seed=3") == 2
    assert "holds a run with config.seed=0, not 3" in capsys.readouterr().err
    same = names["found"].selection
    given = {"usage_mean": same.usage_mean.tolist(), "z": same.z.tolist()}
    given |= {"test_prompts": same.half_b.tolist(), "selected": [[1, int(same.expert[0] + 1) % 6]]}
    assert call(*mine, profile(tmp_path, **given)) == 2
    assert "holds a run with selected=" in capsys.readouterr().err


def test_a_profile_chooses_experts_and_prompts(given, tmp_path, monkeypatch, capsys):
    seen = {}

    def run_study(lm, prompts, selection, config, workdir, **rest):
        seen.update(prompts=prompts, selection=selection, planted=rest["planted"])
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_study", run_study)
    planted = (f"--planted_ignores={given[0]}", f"--planted_uses={given[0]}")
    assert call(*flags(given, tmp_path / "run", profile(tmp_path), *planted)) == 130
    assert [p.text for p in seen["prompts"]] == ["5+2=\n", "0+2=\n", "2+2=\n"]
    assert seen["selection"].target.tolist() == [[False] * 4 + [True, False]]
    assert seen["selection"].score.tolist() == [[0.5, 1.0, 0.25, 2.0, 3.0, 0.0]]
    assert seen["planted"].ignores.name == str(given[0])
    err = capsys.readouterr().err
    assert "SIGINT: stopped before the first run; the same command goes on from there" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_says_how_far_it_got(given, tmp_path, monkeypatch, capsys, signum):
    # A shell that starts a command in the background has it ignore Ctrl-C.
    mine = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)

    def run_study(*_, progress, **__):
        progress(0, 9, "base/base")
        progress(1, 9, "base/rerun")
        os.kill(os.getpid(), signum)
        signal.pause()

    monkeypatch.setattr(study, "run_study", run_study)
    assert call(*flags(given, tmp_path / "run", profile(tmp_path))) == 128 + signum
    name = signal.Signals(signum).name
    err = capsys.readouterr().err
    assert f"{name}: stopped after 1 of 9 runs; the same command goes on from there" in err
    assert signal.getsignal(signal.SIGTERM) == before
    signal.signal(signal.SIGINT, mine)


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "which experts? Give one of --profile=DIR"),
        (["--experts=1:0", "--profile=x"], "which experts? Give one of --profile=DIR"),
        (["--experts=0:0"], "layer 0 has no experts; layers with experts: 1"),
        (["--experts=1:6"], "layer 1 has no expert 6: its experts are 0 to 5"),
        (["--experts=1-0"], "'1-0' is not LAYER:EXPERT"),
        (["--profile=nowhere"], "nowhere: no such file; launch/profile_routing.py makes one"),
        (["--experts=1:0", "--interventions=supress"], "did you mean suppress?"),
        (["--experts=1:0", "--interventions=zero,zero@all"], "zero@all is there twice"),
        (["--experts=1:0", "--interventions=replay"], "replay needs --routes=FILE"),
        (["--experts=1:0", "--interventions=replay@answer"], "use replay or replay@prompt"),
        (["--experts=1:0", "--routes=nowhere"], "routes nowhere: can't be read as .npz"),
        (["--experts=1:0", "--controls=5"], "controls=5: must be at least 20"),
        (["--experts=1:0", "--controls=many"], "--controls=many: must be a whole number"),
        (["--experts=1:0", "--margin=wide"], "--margin=wide: must be a number"),
        (["--experts=1:0", "--filler=12"], "filler='12' is 2 tokens of this model"),
        (["--experts=1:0", "--planted_uses=x"], "--planted_uses without --planted_ignores"),
        (["--experts=1:0", "--planted_ignores=x"], "--planted_ignores without --planted_uses"),
        (["--experts=1:0", "--max_new_tokens=60"], "prompt 0 has 5 tokens, and up to 70 are"),
        (["--experts=1:0,1:1,1:2,1:3"], "no controls for the selected experts"),
        (["--experts=1:0", "--model=nowhere"], "is not a folder with config.json"),
        (["--experts=1:0", "--prompts=nowhere"], "can't be read"),
        (["--experts=1:0", "--workdir={file}"], "is a file; name a folder"),
        (["--experts=1:0", "--unknown=1"], "--unknown: no such flag"),
        (["--experts=1:0", "more"], "'more': not a flag"),
    ],
)  # fmt: skip
def test_one_line_for_a_mistake(given, tmp_path, capsys, more, message):
    (tmp_path / "file").write_text("")
    more = [flag.format(file=tmp_path / "file") for flag in more]
    assert call(*flags(given, tmp_path / "run", *more)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    error = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_experts": 8}, "a model with 8 experts in layers 1; this one has 6 in layers 1"),
        ({"test_prompts": []}, "test_prompts is empty"),
        ({"test_prompts": [6]}, "prompt 6 of its test_prompts isn't among the 6 of --prompts"),
    ],
)
def test_a_profile_that_does_not_fit(given, tmp_path, capsys, changes, message):
    assert call(*flags(given, tmp_path / "run", profile(tmp_path, **changes))) == 2
    assert message in capsys.readouterr().err


def test_models_without_experts(given, tmp_path, capsys):
    dense = small_lm.write(tmp_path / "dense", "llama")
    assert call(*flags((dense, given[1]), tmp_path / "run", "--experts=0:0")) == 2
    assert f"--model={dense}: this model has no experts" in capsys.readouterr().err
    planted = (f"--planted_ignores={given[0]}", f"--planted_uses={dense}")
    assert call(*flags(given, tmp_path / "run", profile(tmp_path), *planted)) == 2
    assert f"--planted_uses={dense}: this model has no experts" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["misroute", "profile_routing"])
def test_help_needs_no_jax(name):
    code = f"""if True:
        import runpy, sys
        sys.argv = ["{name}.py", "--help"]
        try:
            runpy.run_path("launch/{name}.py", run_name="__main__")
        except SystemExit as end:
            assert end.code == 0, end.code
        print(sorted({{"jax", "flax", "scipy", "tokenizers"}} & set(sys.modules)))"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "[]"


def test_help_names_every_flag_and_default(capsys):
    assert call("--help") == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(MisrouteConfig):
        assert re.search(rf"^  --(\[no\])?{field.name}(=\S+)? ", text, re.MULTILINE), field.name
    assert ",".join(MisrouteConfig.interventions) in "".join(text.split())
    assert "(default \\n)" in " ".join(text.split())


def test_escapes_lists_and_empty_flags():
    given = ("x", "--model=m", "--prompts=p", "--workdir=w", "--experts=1:0", "--profile=")
    more = (r"--delimiter=\tA:", r"--filler=\n", "--interventions=zero, random@answer")
    config = cli.parse([*given, *more], MisrouteConfig)
    assert (config.delimiter, config.filler, config.profile) == ("\tA:", "\n", "")
    assert config.settings().interventions == ("zero@all", "random@answer")
