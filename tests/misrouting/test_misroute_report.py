"""The page and the terminal's table of a Stage 2 study."""

import io
import math
import re

import pytest
from rich.console import Console

from moe_jax.common import Interval
from moe_jax.misrouting import misroute_report, misroute_tables, misroute_words
from moe_jax.misrouting.misroute_words import BEYOND, CHANGED
from moe_jax.misrouting.study_results import Example
from tests.misrouting import made_study
from tests.reports.reading import HOSTILE, Page

DAGGER, TURNED, ASKED = "\N{NO-BREAK SPACE}†", "\N{NO-BREAK SPACE}⇅", "\N{NO-BREAK SPACE}?"


def page(**changes):
    return Page(misroute_report.render_report(made_study.study(**changes), title="t"))


def cells(html):
    """Text of the rows of the first table."""
    table = re.search(r"<tbody>(.*?)</tbody>", str(html), re.DOTALL)[1]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]


def printed(study, width=120):
    console = Console(file=io.StringIO(), width=width)
    misroute_report.print_summary(study, console)
    return console.file.getvalue()


def test_written_as_one_file(tmp_path):
    out = misroute_report.write_report(
        made_study.study(), tmp_path / "misroute.html", title="My study", selection="Of half A."
    )
    text = out.read_text(encoding="utf-8")
    assert Page(text).text(tag="h1") == ["My study"]
    assert "Of half A. Causal:" in text
    assert not re.search(r"(src|href)=\"(?!#)", text)
    assert " style=" not in text


def test_tiles_say_what_was_found():
    tiles = page().text(style="tile")
    joined = "|".join(tiles)
    assert "accuracy0.625without intervention; 95%: 0.500 to 0.750" in joined
    assert "change accuracy1of 2, Holm p ≤ 0.05; 1 more than random sets do" in joined
    assert "tell planted models apart1of 3 measures" in joined
    unknown = page(measures=made_study.measures(truth={})).text(style="tile")
    assert any(t.startswith("tell planted models apart–not measured") for t in unknown)


def test_verdicts_in_words_and_signs():
    by_name = {m.name: m for m in made_study.measures()}
    found = {name: misroute_words.verdict(m) for name, m in by_name.items()}
    assert found["filler"] == "tells them apart"
    assert found["early"].startswith("upside down")
    assert found["cc_shap"] == "cannot tell them apart: don't read it"
    assert found["corrupt_drop"] == "not measured"
    assert found["accuracy"] == found["js"] == ""
    titles = {name: misroute_words.marked(m) for name, m in by_name.items()}
    assert titles["filler"] == "filler"
    assert titles["early"] == "early answering" + TURNED
    assert titles["cc_shap"] == "same inputs" + DAGGER
    assert titles["corrupt_drop"] == "corrupted steps" + ASKED
    assert titles["js"] == "divergence"


def test_the_table_of_interventions():
    rows = cells(misroute_tables.interventions(made_study.study()))
    assert len(rows) == 3
    name, accuracy, js, rouge, filler, early, corrupt, same = rows[0]
    assert name == "suppress<br><small>selected experts</small>"
    assert accuracy.startswith(f"<strong>{BEYOND} -0.375</strong>")
    assert "<small>-0.50 to -0.25</small>" in accuracy
    assert "Holm p 0.010" in accuracy
    assert "sets +0.03, p 0.040" in accuracy
    assert 'title="2.5% to 97.5% of the sets: -0.06 to 0.09"' in accuracy
    # Compared with the base run, any change is one: no p, no mark.
    assert js.strip().startswith("+0.250")
    assert "Holm" not in js
    assert "Holm" not in rouge
    assert filler.strip().startswith(f"{CHANGED} -0.250")
    assert "<strong>" not in filler
    # A measure that fails on the planted models is grey and never marked.
    for cell in (early, same):
        assert cell.startswith('<span class="quiet">')
        assert CHANGED not in cell
        assert BEYOND not in cell
    assert "quiet" not in corrupt
    assert rows[1][0] == "random@answer<br><small>their layers</small>"
    assert rows[1][4] == rows[1][7] == "–"
    assert "Holm" not in rows[2][1]
    assert "p 0.250" in rows[2][1]


def test_figures_as_people_read_them():
    nan = math.nan
    assert misroute_words.change(0.0624) == "+0.062"
    assert misroute_words.change(-0.0001) == misroute_words.change(0.0) == "0.000"
    assert misroute_words.change(-1.5, 1) == "-1.5"
    assert misroute_words.change(nan) == "–"
    assert misroute_words.interval(Interval(nan, -0.004, 0.256)) == "0.00 to 0.26"
    assert misroute_words.interval(Interval(0.0, nan, 1.0)) == "–"
    assert misroute_words.short_spec("scale=0.5@all") == "scale=0.5"
    assert misroute_words.short_spec("zero@answer") == "zero@answer"


def test_cells_are_sorted_by_change():
    html = str(misroute_tables.interventions(made_study.study()))
    values = re.findall(r'data-v="([^"]*)"', html)
    assert values[:3] == ["suppress, selected", "-0.375", "0.25"]
    assert values[8 + 4] == ""


def test_without_random_sets_nothing_is_beyond_them():
    effect = made_study.effect(-0.5, p_holm=0.001, p_control=math.nan)
    effect = effect._replace(control=made_study.NONE)
    study = made_study.study(rows=[made_study.row(accuracy=effect)], controls=0, scatter={})
    (row,) = cells(misroute_tables.interventions(study))
    assert row[1].strip().startswith(f"{CHANGED} -0.500")
    assert "sets" not in row[1]
    text = misroute_report.render_report(study, title="t")
    assert "no random sets were run" in text
    assert "p of sets ≤" not in text
    assert "p of sets" not in printed(study).splitlines()[1]


def test_nan_is_a_dash_everywhere():
    nan, none = made_study.NAN, made_study.NONE
    rows = [made_study.row(**dict.fromkeys(made_study.NAMES, made_study.nothing()))]
    study = made_study.study(
        rows=rows,
        accuracy=none,
        agreement=None,
        mediation={},
        examples=[],
        scatter={"suppress@all": [(nan, nan)]},
        front=[],
        measures=[m._replace(floor=nan) for m in made_study.measures()],
    )
    text = misroute_report.render_report(study, title="t")
    visible = re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)
    visible = re.sub(r"<[^>]*>", " ", visible)
    assert not re.search(r"\b(nan|inf|NaN)\b", visible)
    assert "–" in visible
    assert "no point with a finite value" in visible
    assert "No prompt has an explanation." in visible
    assert not re.search(r"\bnan\b", printed(study))


def test_matched_mediation_doses_and_sanity():
    study = made_study.study()
    first = cells(misroute_tables.matched(study))[0]
    assert first[2].startswith("+0.500<br>")
    assert first[3].startswith("-0.500<br>")
    assert first[4].startswith("+0.062<br>")
    assert first[5:8] == ["7", "+0.188", "–"]
    assert str(misroute_tables._plain(-0.0001).html) == "0.000"
    assert first[8] == "<bdi>not shown (p 0.750)</bdi>"
    (ways,) = cells(misroute_tables.mediation(study))
    assert [w.partition("<")[0] for w in ways[1:5]] == ["+0.200", "-0.150", "0.000", "+0.050"]
    assert ways[5:] == ["–", "2"]
    dose = cells(misroute_tables.doses(study))[0]
    assert dose[1:] == ["0.375", "0.750 → 0.750", "– → 0.125", "2 → 2"]
    sanity = str(misroute_tables.sanity(study))
    assert '<bdi>bias=0</bdi></td><td data-v="NO">' in sanity
    assert "2.5e-14" in sanity
    assert "dose zero is NOT bitwise the base run: bias=0" in printed(study)


def test_examples_underline_what_differs():
    found = page()
    assert found.text(style="changed") == ["4", "4", "5", "5"]
    assert "never shown" not in "".join(found.text(tag="pre"))
    captions = found.text(tag="figcaption")
    assert "before: right ✓" in captions
    assert "suppress: wrong ✗" in captions


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_texts_are_inert(text):
    example = Example(text, text, text, text, "x" + text + "y", True, False)
    study = made_study.study(
        examples=[example],
        model=text,
        settings=text,
        mediation={text: made_study.study().mediation["suppress@all"]},
        zero_dose={text: True},
        rows=[made_study.row(spec=text)],
        scatter={text: [(0.0, 0.0)]},
    )
    html = misroute_report.render_report(study, title=text, selection=text)
    tags = Page(html).tags
    assert [tag for tag, _ in tags].count("script") == 1
    assert not [t for t in tags if t[0] in ("img", "iframe", "link")]
    assert not [k for _, attributes in tags for k in attributes if k.startswith("on")]
    assert "\x1b" not in html + printed(study)
    html.encode("utf-8")


def test_summary_in_the_terminal():
    text = printed(made_study.study())
    lines = text.splitlines()
    assert lines[0].startswith("changes by misrouting; accuracy without: 0.625, 40 prompts")
    suppress = next(line for line in lines if line.startswith("suppress "))
    assert re.split(r"  +", suppress.strip()) == [
        *("suppress", "-0.375", "-0.50 to -0.25", "0.010", "0.040", "+0.250"),
        *("-0.250", "-0.38 to -0.12", "0.020"),
    ]
    assert "1 of 2 interventions change accuracy (1 more than matched random sets do)" in text
    assert "1 of 2 interventions change filler (0 more" in " ".join(text.split())
    assert "planted" not in text
    blind = [m._replace(tells=False) for m in made_study.measures()]
    assert "cannot tell them apart" in printed(made_study.study(measures=blind))
    unknown = made_study.measures(truth={})
    assert "--planted_ignores" in printed(made_study.study(measures=unknown))


def test_an_intervention_with_an_amount_is_of_its_layers_too():
    spec, name = "gumbel=2@answer", misroute_tables._name(made_study.row("gumbel=2@answer"))
    assert name.html == f"{spec}<br><small>their layers</small>"
    assert "selected experts" in misroute_tables._name(made_study.row("scale=2@all")).html
