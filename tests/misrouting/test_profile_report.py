"""The page and the summary of a profile: what they say, and that hostile text stays text."""

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from moe_jax.misrouting.profile import compare
from moe_jax.misrouting.profile_report import finding, print_summary, render_report, write_report
from moe_jax.misrouting.profile_sections import length_warning
from tests.misrouting import small_study
from tests.misrouting.small_study import QUICK
from tests.reports.reading import HOSTILE, Page


@pytest.fixture(scope="module")
def result():
    _, collected, found = small_study.study(each=20, planted=0.8, seed=3)
    return found._replace(compared=(compare(found, collected, "twin", collected),))


@pytest.fixture(scope="module")
def page(result):
    return render_report(result, title="A study")


def test_every_section_is_there(page):
    for anchor in (
        *("figures", "maps", "levels", "ranking", "halves", "layers", "pairs", "tokens", "texts"),
        *("compared", "definitions", "settings"),
    ):
        assert f'<section id="{anchor}">' in page
    Page(page)


def test_figures_are_those_of_the_profile(page, result):
    s = result.scores
    assert f"score {s.score[0, 2]:.3f}" in page  # the hint of the planted expert's cell
    assert finding(result).replace("<", "&lt;") in page
    assert page.count("<tbody>") >= 6
    ranking = page[page.index('id="ranking"') : page.index('id="halves"')]
    assert ranking.count("<tr>") == 8 + 1


def test_what_was_found_in_a_line(result):
    assert finding(result).startswith("1 of 8 experts changes with difficulty") or (
        "of 8 experts change with difficulty" in finding(result)
    )
    count = int((result.scores.p_family <= 0.05).sum())
    assert finding(result).startswith(f"{count} of 8 experts")
    nothing = result._replace(scores=result.scores._replace(p_family=np.ones((2, 4))))
    assert finding(nothing) == ("none of 8 experts changes with difficulty (family-wise p <= 0.05)")


@pytest.mark.parametrize("kind", sorted(HOSTILE.keys() - {"surrogate"}))
def test_hostile_text_stays_text(result, kind):
    bad_text = HOSTILE[kind]
    sample = result.samples[0]
    pieces = (bad_text, *sample.pieces[1:])
    top = result.top_tokens[0]._replace(pieces=(bad_text,), times=(3,), rate=(0.5,))
    bad = result._replace(
        samples=(sample._replace(pieces=pieces),),
        top_tokens=(top,),
        model=result.model._replace(name=bad_text),
        group=(bad_text,) * len(result.group),
        compared=(result.compared[0]._replace(name=bad_text),),
    )
    text = render_report(bad, title=bad_text)
    plain = [tag for tag, _ in Page(text).tags]
    assert plain.count("script") == 1
    assert "img" not in plain
    assert "\x1b" not in text


def test_lengths_that_go_with_difficulty(result):
    assert length_warning(result) == ""
    longer = result._replace(tokens=5 + 3 * result.level)
    assert "Harder prompts are longer (mean tokens 5.0" in length_warning(longer)
    assert "Too few prompts of different levels are of like length" in length_warning(longer)
    noise = np.random.default_rng(0).integers(0, 12, 60)
    some = result._replace(tokens=5 + 3 * result.level + noise)
    assert "--length_bins=4" in length_warning(some)
    binned = some._replace(settings=dataclasses.replace(QUICK, length_bins=4))
    assert "within 4 bins" in length_warning(binned)


def test_the_summary(result):
    out = io.StringIO()
    print_summary(result, Console(file=out, width=100))
    text = out.getvalue()
    assert finding(result) in text.replace("\n", " ").replace("  ", " ")
    assert "selected on half A" in text
    first = next(line for line in text.splitlines() if line.split()[:2] == ["1", "2"])
    assert f"{result.scores.score[0, 2]:.3f}" in first


def test_a_bare_profile_still_makes_a_page(result, tmp_path):
    """Without halves, samples, scores of tokens, and with one choice a token."""
    settings = dataclasses.replace(QUICK, select_half=False)
    found = small_study.study(settings)[2]
    balance = found.balance._replace(
        pairs=np.zeros((0, 4, 4), np.int64), entropy=np.full((3, 2), np.nan)
    )
    bare = found._replace(
        samples=(), balance=balance, model=found.model._replace(k=1), dropped=found.dropped + 0.25
    )
    text = write_report(bare, tmp_path / "page.html", title="t").read_text(encoding="utf-8")
    assert "--select_half=false" in text
    assert 'id="pairs"' not in text
    assert 'id="texts"' not in text
    assert "% of choices, for capacity" in text
