"""The report: every figure is on the page, hostile names are only names, files are whole."""

import dataclasses
import errno
import io
import json
import math
import os

import numpy as np
import pytest
from rich.console import Console

from moe_jax.errors import UserError
from moe_jax.rationale import report_sections as sections
from moe_jax.rationale.assess import from_json
from moe_jax.rationale.explain import stored_names
from moe_jax.rationale.report import print_summary, render_report, write_report
from moe_jax.reports import visible
from tests.rationale import fakes
from tests.reports.reading import HOSTILE, Page

ANCHORS = [
    "figures",
    "texts",
    "factors",
    "usage",
    "rationales",
    "training",
    "definitions",
    "config",
]


@pytest.fixture(scope="module")
def labelled():
    return fakes.assessment(num_samples=4)


def render(assessment, history=(), config_text="{}"):
    return render_report(assessment, list(history), title="A run", config_text=config_text)


def test_the_page_shows_every_figure(labelled):
    page = Page(render(labelled, fakes.history(100)))
    assert [a["id"] for tag, a in page.tags if tag == "section"] == ANCHORS
    cells = page.text(tag="td")
    for method in labelled.methods:
        at = cells.index(method.name)
        one = method.one_to_one
        wanted = (
            one.macro_precision,
            one.macro_recall,
            one.macro_f1,
            method.many_to_one.macro_f1,
            method.ami,
        )
        assert cells[at + 1 : at + 6] == [f"{x:.3f}" for x in wanted]
    own = labelled.methods[0].one_to_one
    for factor, label in enumerate(labelled.mapping):
        at = cells.index(labelled.labels[label])
        assert cells[at - 1] == str(factor)
        wanted = [own.precision[label], own.recall[label], own.f1[label]]
        wanted += [m.one_to_one.f1[label] for m in labelled.methods[1:]]
        assert cells[at + 1 : at + 8] == [f"{x:.3f}" for x in wanted]
        assert cells[at + 8] == f"{own.support[label]:,}"
        assert cells[at + 9] == f"{labelled.usage[factor]:.3f}"
        assert cells[at + 10] == ", ".join(word for word, _ in labelled.top_words[factor])
    at = cells.index("Span F1 (IoU ≥ 0.5)")
    eraser = labelled.rationale_scores
    assert cells[at + 1 : at + 3] == [
        f"{eraser[f'iou_f1_{form}']:.3f}" for form in ("compat", "corrected")
    ]
    assert page.text(style="text") == [sample.text for sample in labelled.samples]
    assert "loss" in page.text(tag="figcaption")[0]


def test_without_gold_labels_the_sections_say_so():
    assessment = fakes.assessment(gold=False, num_samples=2)
    page = Page(render(assessment))
    assert [a["id"] for tag, a in page.tags if tag == "section"] == ANCHORS
    said = " ".join(page.text(style="missing"))
    assert said.count("carry no gold labels") == 3
    assert "No metrics were recorded" in said
    assert not any("underline" in str(a.get("value")) for tag, a in page.tags if tag == "input")


def test_an_assessment_of_almost_nothing():
    assessment = fakes.assessment(num_factors=1, gold=False, num_samples=0)
    assessment = dataclasses.replace(assessment, faithfulness={}, monitors={}, top_words=[[]])
    said = " ".join(Page(render(assessment)).text(style="missing"))
    assert "no sample texts" in said
    assert "Faithfulness was not measured" in said


@pytest.mark.parametrize("name", [n for n in HOSTILE if n != "surrogate"])
def test_hostile_text_anywhere_is_only_text(name, labelled, tmp_path):
    bad = HOSTILE[name]
    hostile = dataclasses.replace(
        labelled,
        labels=[f"{bad} {i}" for i in range(12)],
        methods=[m._replace(name=bad) for m in labelled.methods],
        top_words=[[(bad, 1.0)]] * 12,
        samples=[fakes.text_rationale(bad, [(0, len(bad), 3)])],
    )
    path = tmp_path / "report.html"
    write_report(hostile, [{"step": 1, bad: 1.0}], path, title=bad, config_text=bad)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.text(style="text") == [visible(bad)]
    assert page.text(tag="pre") == [visible(bad)]
    assert page.text(style="name") == [visible(f"{bad} {i}", keep="") for i in labelled.mapping]
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(tag == "img" for tag, _ in page.tags)


def test_the_assessment_is_stored_beside_the_page(labelled, tmp_path):
    written = write_report(labelled, [], tmp_path / "report.html", title="t", config_text="")
    assert written == tmp_path / "report.html"
    stored = from_json(json.loads((tmp_path / "assessment.json").read_text(encoding="utf-8")))
    np.testing.assert_array_equal(stored.mapping, labelled.mapping)
    assert stored.samples[0].text == labelled.samples[0].text
    assert stored_names(tmp_path, 12) == [labelled.labels[label] for label in labelled.mapping]
    assert sorted(os.listdir(tmp_path)) == ["assessment.json", "report.html"]


def test_a_full_disk_leaves_the_old_page(labelled, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("the old page")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_report(labelled, [], path, title="t", config_text="")
    assert path.read_text() == "the old page"
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_missing_folder_is_one_clear_line(labelled, tmp_path):
    with pytest.raises(UserError, match="can't be written: No such file"):
        write_report(labelled, [], tmp_path / "no" / "report.html", title="t", config_text="")


def test_the_same_assessment_gives_the_same_page(labelled):
    assert render(labelled, fakes.history()) == render(labelled, fakes.history())


def with_f1(assessment, **f1):
    """The same with other macro F1 figures."""
    methods = [
        m._replace(one_to_one=m.one_to_one._replace(macro_f1=f1[m.name]))
        for m in assessment.methods
        if m.name in f1
    ]
    return dataclasses.replace(assessment, methods=methods, monitors={})


@pytest.mark.parametrize(
    "f1, said",
    [
        (
            {"model": 0.7, "random": 0.1, "NMF": 0.4},
            "macro F1 of 0.700, 0.300 above the best baseline, NMF, which reaches 0.400.",
        ),
        ({"model": 0.2, "random": 0.1, "NMF": 0.4}, "0.200 below the best baseline, NMF"),
        ({"model": 0.4, "NMF": 0.4}, "0.400, level with the best baseline"),
        ({"model": 0.4}, "with a macro F1 of 0.400."),
    ],
)
def test_the_reading_says_how_the_model_compares(labelled, f1, said):
    assert said in sections.reading(with_f1(labelled, **f1))


def test_the_reading_gives_the_interval(labelled):
    assert "(95% interval 0.741 to 0.779)" in sections.reading(labelled)


def test_series_are_in_the_order_of_steps():
    history = [
        {"step": 10, "loss": 2.0, "note": "x"},
        {"step": 20, "loss": None, "skipped": 1},
        {"step": 10, "loss": 1.0},
        {"step": 5, "loss": 3},
    ]
    found = sections.series(history)
    assert list(found) == ["loss", "skipped"]
    assert found["loss"][:2] == [(5.0, 3.0), (10.0, 1.0)]
    assert found["loss"][2][0] == 20.0
    assert math.isnan(found["loss"][2][1])


def test_only_telling_curves_are_drawn():
    history = [
        {"step": i, "loss": 1.0, "skipped": 0, **{f"eval/a{k}": 1.0 for k in range(9)}}
        for i in (1, 2)
    ]
    names = [text.strip() for text in Page(str(sections.training(history))).text(tag="span")]
    assert names == ["loss", *[f"a{k}" for k in range(6)]]
    history[1]["skipped"] = 2
    assert ">skipped<" in sections.training(history)


def console(width=80, **options):
    return Console(file=io.StringIO(), width=width, legacy_windows=False, _environ={}, **options)


def test_the_summary_in_plain_text(labelled):
    out = console()
    print_summary(labelled, out, num_samples=2)
    shown = out.file.getvalue()
    assert "\x1b" not in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if "[" not in line)
    own = labelled.methods[0].one_to_one
    for factor, label in enumerate(labelled.mapping):
        (row,) = [
            line for line in shown.splitlines() if line[3:].startswith(labelled.labels[label] + " ")
        ]
        figures = row[3 + len(labelled.labels[label]) :].split()
        assert figures[:3] == [f"{x[label]:.3f}" for x in (own.precision, own.recall, own.f1)]
        assert figures[3:7] == [f"{m.one_to_one.f1[label]:.3f}" for m in labelled.methods[1:]]
        assert int(row[:2]) == factor
    first = labelled.samples[0].text.split()[0]
    assert f": {first}" in shown
    assert "above the best baseline" in shown.replace("\n", " ")


def test_the_summary_in_colours(labelled):
    out = console(force_terminal=True, color_system="truecolor")
    print_summary(labelled, out, num_samples=1)
    assert "48;2;" in out.file.getvalue()


def test_the_summary_without_gold_labels():
    out = console()
    print_summary(fakes.assessment(num_factors=14, gold=False), out, num_samples=1)
    shown = out.file.getvalue()
    assert "13 " in shown
    assert "Name" in shown
    assert "F1" not in shown
