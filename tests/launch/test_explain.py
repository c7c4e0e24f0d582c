"""launch/explain.py: what comes in, what goes out, and one line for every mistake."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from launch import _cli as cli
from launch import _systems as systems
from launch import explain as script
from moe_jax import training
from moe_jax.errors import UserError
from moe_jax.rationale import TextRationale
from tests.reports.reading import Page


def rationales(model, texts):
    """One token per word; long words are factor 1."""
    assert model == "the model"
    found = []
    for text in texts:
        starts = [
            i for i, c in enumerate(text) if not c.isspace() and (i == 0 or text[i - 1].isspace())
        ]
        words = [(i, i + len(text[i:].split()[0])) for i in starts]
        probs = np.array([[0.1, 0.9] if b - a > 3 else [0.8, 0.2] for a, b in words], np.float32)
        found.append(TextRationale(text, np.array(words, np.int64), probs))
    return found


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A folder that passes for a trained run, with names for its factors."""
    folder = tmp_path / "run"
    folder.mkdir()
    stored = {
        "labels": ["tools"],
        "mapping": [-1, 0],
        "usage": [0.5, 0.5],
        "top_words": [[["a", 1.0]], []],
    }
    (folder / "assessment.json").write_text(json.dumps(stored))
    task = SimpleNamespace(rationales=rationales)
    config = SimpleNamespace(system="rationale")
    monkeypatch.setattr(systems, "load_config", lambda path: config)
    monkeypatch.setattr(systems, "make_task", lambda config: task)
    monkeypatch.setattr(training, "restore_model_at", lambda task, path, which: ("the model", 3))
    return folder


def call(*flags):
    return cli.run(script.main, ["explain.py", *map(str, flags)])


def give(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_standard_input_to_text(workdir, monkeypatch, capsys):
    give(monkeypatch, b"the hammer\nan anvil\n")
    assert call(f"--workdir={workdir}") == 0
    assert capsys.readouterr().out == "[0 a: the] [1 tools: hammer]\n[0 a: an] [1 tools: anvil]\n"


def test_a_file_to_json(workdir, tmp_path, capfdbinary):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "der Bohrer läuft"}\n', encoding="utf-8")
    assert call(f"--workdir={workdir}", f"--input={source}", "--format=json") == 0
    found = json.loads(capfdbinary.readouterr().out.decode("utf-8"))
    assert [t["text"] for t in found["texts"][0]["tokens"]] == ["der", "Bohrer", "läuft"]
    assert [t["name"] for t in found["texts"][0]["tokens"]] == ["a", "tools", "tools"]


@pytest.mark.parametrize("kind", ["text", "json", "html"])
def test_output_to_a_file(workdir, tmp_path, monkeypatch, capsys, kind):
    give(monkeypatch, b"the hammer\n")
    target = tmp_path / "out"
    assert call(f"--workdir={workdir}", f"--format={kind}", f"--output={target}") == 0
    assert capsys.readouterr() == ("", "")
    content = target.read_text(encoding="utf-8")
    if kind == "text":
        assert content == "[0 a: the] [1 tools: hammer]\n"
    elif kind == "json":
        assert json.loads(content)["factors"][1] == {"factor": 1, "name": "tools"}
    else:
        assert Page(content).text(style="text") == ["the hammer"]
        assert Page(content).text(style="name") == ["a", "tools"]


def test_html_on_the_screen(workdir, monkeypatch, capfdbinary):
    give(monkeypatch, b"-")
    assert call(f"--workdir={workdir}", "--format=html", "--input=-") == 0
    assert Page(capfdbinary.readouterr().out.decode()).text(style="text") == ["-"]


@pytest.mark.parametrize(
    "flags, data, said",
    [
        (["--input=no.txt"], b"", "error: --input=no.txt: no such file"),
        ([], b"", "error: standard input: there is no text in it; give one text a line"),
        ([], b"a\n\nb\n", "error: standard input, line 2: no text"),
        ([], b"\xff\xfe", "error: standard input, line 1: not UTF-8"),
        (["--format=xml"], b"a", "error: --format=xml: must be one of text, json, html"),
        (["--output=no/such/x.html"], b"a", "error: --output=no/such/x.html: there is no folder"),
        (["--inptu=x"], b"a", "error: --inptu: no such flag; did you mean --input?"),
        (["stray"], b"a", "error: 'stray': not a flag"),
    ],
)
def test_mistakes_are_one_line_and_status_2(workdir, monkeypatch, capsys, flags, data, said):
    give(monkeypatch, data)
    assert call(f"--workdir={workdir}", *flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert err.count("\n") == 1


def test_a_missing_workdir_flag(capsys):
    assert call("--format=json") == 2
    assert capsys.readouterr().err.startswith("error: --workdir=DIR is missing")


def test_a_folder_without_a_run(tmp_path, capsys):
    assert call(f"--workdir={tmp_path}") == 2
    assert "no config.json, so no run was started here" in capsys.readouterr().err


def test_a_run_of_another_system(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"system": "weather"}')
    assert call(f"--workdir={tmp_path}") == 2
    assert capsys.readouterr().err.startswith("error: system='weather': must be one of ")


def test_a_run_of_a_system_that_has_no_rationales(workdir, monkeypatch, capsys):
    monkeypatch.setattr(systems, "load_config", lambda path: SimpleNamespace(system="weather"))
    assert call(f"--workdir={workdir}") == 2
    assert "holds a run of 'weather'" in capsys.readouterr().err


def test_a_run_without_a_checkpoint(workdir, monkeypatch, capsys):
    def none(task, path, which):
        raise UserError(f"{path}: there is no checkpoint; train first")

    monkeypatch.setattr(training, "restore_model_at", none)
    give(monkeypatch, b"a")
    target = workdir / "out.html"
    assert call(f"--workdir={workdir}", "--format=html", f"--output={target}") == 2
    assert "there is no checkpoint" in capsys.readouterr().err
    assert not target.exists()


def test_help(capsys):
    assert call("--help") == 0
    assert "--format=text|json|html" in capsys.readouterr().out
    assert call() == 0
