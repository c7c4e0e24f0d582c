"""Explained texts as JSON, text and a page."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from moe_jax.errors import UserError
from moe_jax.rationale import TextRationale, explain
from moe_jax.reports import visible
from tests.rationale import fakes
from tests.reports.reading import HOSTILE, Page


def test_json_has_offsets_probabilities_and_names():
    rationale = TextRationale(
        "héllo 😀!",
        np.array([[0, 5], [6, 7], [7, 8]]),
        np.array([[0.25, 0.75], [0.9, 0.1], [0.5, 0.5]], np.float32),
    )
    found = json.loads(explain.as_json([rationale, rationale], ["a", "b"]))
    assert found["factors"] == [{"factor": 0, "name": "a"}, {"factor": 1, "name": "b"}]
    assert len(found["texts"]) == 2
    text = found["texts"][0]
    assert text["text"] == "héllo 😀!"
    for token in text["tokens"]:
        assert token["text"] == text["text"][token["start"] : token["end"]]
    assert text["tokens"][0] == {
        "start": 0, "end": 5, "text": "héllo", "factor": 1, "name": "b", "probability": 0.75,
        "probabilities": [0.25, 0.75],
    }  # fmt: skip
    assert [t["factor"] for t in text["tokens"]] == [1, 0, 0]
    assert text["tokens"][1]["probabilities"] == [0.9, 0.1]


def test_json_of_no_tokens():
    empty = TextRationale("…", np.zeros((0, 2), np.int64), np.zeros((0, 2), np.float32))
    assert json.loads(explain.as_json([empty], ["a", "b"]))["texts"] == [
        {"text": "…", "tokens": []}
    ]


@pytest.mark.parametrize("name", [n for n in HOSTILE if n != "surrogate"])
def test_json_gives_every_text_back(name):
    rationale = fakes.text_rationale(HOSTILE[name], num_factors=3)
    found = json.loads(explain.as_json([rationale], [HOSTILE[name], "b", "c"]))
    assert found["texts"][0]["text"] == HOSTILE[name]
    assert found["factors"][0]["name"] == HOSTILE[name]


def test_a_page_of_texts():
    rationales = [fakes.text_rationale(text, num_factors=3) for text in HOSTILE.values()]
    page = Page(explain.as_page(rationales, ["a", "<b>", "c"], title="T"))
    assert page.text(style="text") == [visible(text) for text in HOSTILE.values()]
    assert page.text(style="name") == ["a", "<b>", "c"]
    assert page.text(style="subtitle") == [f"{len(HOSTILE)} texts, 3 factors"]


def test_text_for_a_pipe_and_for_a_terminal():
    rationale = TextRationale(
        "cats ran", np.array([[0, 4], [5, 8]]), np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    )
    pipe = Console(file=io.StringIO(), width=20, _environ={})
    explain.print_texts([rationale, rationale], ["pets", "factor 1"], pipe)
    assert pipe.file.getvalue() == "[0 pets: cats] [factor 1: ran]\n" * 2
    terminal = Console(
        file=io.StringIO(), force_terminal=True, color_system="truecolor", width=60, _environ={}
    )
    explain.print_texts([rationale], ["pets", "factor 1"], terminal)
    shown = terminal.file.getvalue()
    assert "48;2;" in shown
    assert "pets" in shown, "the legend"


def test_names_need_no_assessment(tmp_path):
    assert explain.stored_names(tmp_path, 2) == ["factor 0", "factor 1"]


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "can't be read"),
        ("[]", "must hold one JSON object, not a list"),
        ('{"usage": [0.5, 0.5]}', "is not an assessment"),
        (
            '{"usage": [1.0, 0.0, 0.0], "labels": []}',
            "is of a model with 3 factors, this one has 2",
        ),
        ('{"usage": [1, 0], "top_words": 3, "labels": [], "mapping": []}', "is not an assessment"),
    ],
)
def test_a_damaged_assessment_is_one_clear_line(tmp_path, content, said):
    (tmp_path / "assessment.json").write_text(content)
    with pytest.raises(UserError, match=said):
        explain.stored_names(tmp_path, 2)


def test_the_output_is_checked_before_the_work(tmp_path):
    explain.check_output(tmp_path / "new.html")
    with pytest.raises(UserError, match="is a folder"):
        explain.check_output(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        explain.check_output(tmp_path / "no" / "x.html")
