"""The rationale system through the real scripts: a small encoder, a small corpus, no stand-ins."""

import io
import json
import re
import shutil
import sys
import warnings
from pathlib import Path

import pytest

from launch import _cli as cli
from launch import evaluate, explain, train
from tests.models import small_encoders
from tests.reports.reading import Page

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "rationale.py"


@pytest.fixture(autouse=True)
def same_warnings(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # run() replaces it


def launch(main, *argv):
    return cli.run(main, ["script", *map(str, argv)])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "bert"
    return small_encoders.write(folder, small_encoders.CONFIGS["bert"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for name, num in (("train", 12), ("test", 4)):
        records = [
            {"text": "a b c a b g h i g", "spans": [[0, 9, 0], [10, 17, 1]]},
            {"text": "h i h b c a c", "spans": [[0, 5, 1], [6, 13, 0]]},
        ] * (num // 2)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "labels.json").write_text('["low", "high"]')
    return folder


def flags(encoder, corpus, workdir, *more):
    return [
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        f"--config.data.path={corpus}",
        f"--config.context.encoder={encoder}",
        "--config.context.windows=(4,)",
        "--config.context.stride=2",
        "--config.context.max_tokens=20",
        "--config.model.num_factors=2",
        "--config.batch_size=4",
        "--config.train.steps=2",
        *more,
    ]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, encoder, corpus):
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert launch(train.main, *flags(encoder, corpus, folder)) == 0
    return folder


def give(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_a_run_leaves_its_files(workdir):
    names = {path.name for path in workdir.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "report.html", "finished.json"} <= names
    html = (workdir / "report.html").read_text(encoding="utf-8")
    Page(html)
    assert "high" in html


def test_two_evaluations_give_the_same_figures(workdir, capsys):
    first = (workdir / "evaluation.json").read_bytes()
    for _ in range(2):
        assert launch(evaluate.main, f"--workdir={workdir}") == 0
        assert (workdir / "evaluation.json").read_bytes() == first
    assert "model" in capsys.readouterr().out


def test_explain_restores_the_model_and_keeps_offsets(workdir, monkeypatch, capfdbinary):
    text = "a b  c\u00e9 g"
    give(monkeypatch, f"{text}\nh i\n")
    assert launch(explain.main, f"--workdir={workdir}", "--format=json") == 0
    found = json.loads(capfdbinary.readouterr().out)
    assert [one["text"] for one in found["texts"]] == [text, "h i"]
    tokens = found["texts"][0]["tokens"]
    assert [text[t["start"] : t["end"]] for t in tokens if t["text"] == "a"] == ["a"]
    for token in tokens:
        assert text[token["start"] : token["end"]] == token["text"]
        assert sum(token["probabilities"]) == pytest.approx(1, abs=1e-3)


def test_explain_windows_a_text_longer_than_the_positions(workdir, monkeypatch, capsys):
    give(monkeypatch, "a b g h " * 30)
    assert launch(explain.main, f"--workdir={workdir}") == 0
    shown = re.sub(r"\[\d+ [^:]*: |\]|\s", "", capsys.readouterr().out)
    assert shown == "abgh" * 30


MISTAKES = {
    "no file": ("--config.data.path={tmp}/none.jsonl", r"none\.jsonl"),
    "not UTF-8": ("--config.data.path={tmp}/latin.txt", r"latin\.txt.*UTF-8"),
    "empty corpus": ("--config.data.path={tmp}/empty.txt", r"empty\.txt"),
    "no JSON": ("--config.data.path={tmp}/bad.jsonl", r"bad\.jsonl, line 1: not JSON"),
    "empty line": ("--config.data.path={tmp}/gap.txt", r"gap\.txt, line 2: empty line"),
    "one factor": ("--config.model.num_factors=1", r"num_factors=1: must be at least 2"),
    "k": ("--config.model.k=3", r"model\.k=3: must be from 0 to 2 \(model\.num_factors"),
    "field": ("--config.model.num_factor=3", r"did you mean --config\.model\.num_factors"),
    "no model": ("--config.context.encoder={tmp}/none", r"none"),
    "altered model": ("--config.context.encoder={tmp}/altered", r"altered"),
    "layer": ("--config.context.layer=9", r"context\.layer=9"),
    "window": ("--config.context.max_tokens=200", r"context\.max_tokens=200"),
    "cache": ("--config.context.cache={tmp}/empty.txt", r"context\.cache"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(encoder, tmp_path, capsys, name, corpus):
    flag, said = MISTAKES[name]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "gap.txt").write_text("a b\n\nc\n")
    (tmp_path / "bad.jsonl").write_text("{\n")
    altered = tmp_path / "altered"
    altered.mkdir()
    for path in Path(encoder).iterdir():
        (altered / path.name).write_bytes(path.read_bytes())
    weights = altered / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    if name == "window":
        corpus = tmp_path / "long.txt"
        corpus.write_text("a b c g " * 30 + "\n" + "h i " * 60 + "\n")
    given = flags(encoder, corpus, tmp_path / "run", flag.format(tmp=tmp_path))
    assert launch(train.main, *given) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"error: .*\n", captured.err)
    assert re.search(said, captured.err)
    assert not (tmp_path / "run").exists()


def test_another_config_in_the_same_folder_is_refused(encoder, corpus, workdir, capsys):
    before = sorted(path.name for path in workdir.iterdir())
    given = flags(encoder, corpus, workdir, "--config.model.temperature=0.3")
    assert launch(train.main, *given) == 2
    assert "model.temperature=0.5, not 0.3" in capsys.readouterr().err
    assert sorted(path.name for path in workdir.iterdir()) == before


def test_addresses_and_homes(encoder, corpus, tmp_path, monkeypatch, capsys):
    """An address is refused before anything is made; "~" is the user's home in every path."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "home" / "corpus").symlink_to(corpus)
    (tmp_path / "home" / "bert").symlink_to(encoder)
    mine = flags("~/bert", "~/corpus", "~/run", "--config.context.cache=~/cache")
    for more, name in (
        ("--workdir=gs://bucket/run", "--workdir"),
        ("--config.data.path=s3://bucket/texts.jsonl", "data.path"),
        ("--config.context.cache=gs://bucket/states", "context.cache"),
        ("--config.context.encoder=hf://bert", "context.encoder"),
        ("--workdir=~nobody-here/run", "--workdir"),
    ):
        assert launch(train.main, *mine, more) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"error: {name}={more.split('=', 1)[1]}: ")
        assert captured.err.count("\n") == 1
        assert sorted(p.name for p in (tmp_path / "home").iterdir()) == ["bert", "corpus"]
    assert launch(train.main, *mine) == 0
    assert launch(evaluate.main, "--workdir=~/run") == 0
    (tmp_path / "home" / "in.txt").write_text("a b\n")
    explained = ("--workdir=~/run", "--input=~/in.txt", "--output=~/out.json", "--format=json")
    assert launch(explain.main, *explained) == 0
    names = ["bert", "cache", "corpus", "in.txt", "out.json", "run"]
    assert sorted(p.name for p in (tmp_path / "home").iterdir()) == names
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("name", ["assessment.json", "evaluation.json"])
@pytest.mark.parametrize("content", ["{", "[" * 100_000, "[]", '{"figures": 3, "usage": [1]}'])
def test_a_damaged_result_is_one_line(encoder, corpus, workdir, tmp_path, capsys, name, content):
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    assert launch(train.main, *flags(encoder, corpus, tmp_path / "run")) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path / 'run' / name}")
    assert err.count("\n") == 1
