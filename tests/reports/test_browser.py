"""The pages in a real browser: what is seen, pressed, pointed at and printed."""

import re

import pytest

from moe_jax.rationale import as_page
from moe_jax.rationale.report import render_report
from moe_jax.reports import visible
from tests.rationale import fakes
from tests.reports.reading import HOSTILE

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report():
    """A labelled report: the assessment and its page."""
    assessment = fakes.assessment(num_samples=5)
    history = fakes.history(100)
    return assessment, render_report(assessment, history, title="A report", config_text="{}")


@pytest.fixture
def opened(browser, report, tmp_path):
    """The report in the browser, which must have nothing to complain about in the end."""
    path = tmp_path / "report.html"
    path.write_text(report[1], encoding="utf-8")
    browser.view()
    browser.open(path)
    yield browser
    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]


def colour(browser, selector):
    """Background of the first element that matches, as (red, green, blue) from 0 to 255."""
    found = browser.run(f"getComputedStyle(document.querySelector({selector!r})).backgroundColor")
    unit = 255 if found.startswith("color(srgb") else 1
    return tuple(round(unit * float(x)) for x in re.findall(r"\d*\.?\d+", found)[:3])


def test_pointing_at_a_word_shows_the_probability_of_each_factor(opened, report):
    assert opened.run("tip.hidden") is True
    opened.hover(".text .w")
    assert opened.run("tip.hidden") is False
    word = opened.run("document.querySelector('.text .w').textContent")
    assert opened.run("document.querySelector('#tip strong').textContent") == word
    probs = [int(p) for p in opened.run("document.querySelector('.text .w').dataset.p").split()]
    names = opened.run("[...document.querySelectorAll('#tip .row span')].map(x => x.textContent)")
    shown = opened.run("[...document.querySelectorAll('#tip .row em')].map(x => x.textContent)")
    assert shown == [f"{p / 10:.1f}%" for p in sorted(probs, reverse=True)]
    assert sorted(names) == sorted(report[0].labels)
    best = report[0].labels[report[0].mapping[max(range(12), key=probs.__getitem__)]]
    assert names[0] == best
    box = opened.run(
        "(b => [b.left >= 0, b.right <= innerWidth, b.bottom <= innerHeight])(tip.getBoundingClientRect())"
    )
    assert box == [True, True, True]
    opened.hover("h1")
    assert opened.run("tip.hidden") is True


def test_the_arrow_keys_go_from_word_to_word(opened):
    opened.run("document.querySelector('.text').focus()")
    opened.press("ArrowRight")
    opened.press("ArrowRight")
    second = opened.run("document.querySelectorAll('.text .w')[1].textContent")
    assert opened.run("document.querySelector('#tip strong').textContent") == second
    opened.press("Escape")
    assert opened.run("tip.hidden") is True


def test_colours_by_factor_or_by_gold_label(opened):
    wrong = ".w[data-g]:not(.dim)"
    found = opened.run(
        f"[...document.querySelectorAll('{wrong}')].findIndex(w => w.dataset.f !== w.dataset.g)"
    )
    opened.run(f"document.querySelectorAll('{wrong}')[{found}].id = 'wrong'")
    by_factor = colour(opened, "#wrong")
    opened.click("input[value=gold]")
    by_gold = colour(opened, "#wrong")
    assert by_factor != by_gold
    gold = opened.run("document.querySelector('#wrong').dataset.g")
    assert by_gold == colour(opened, f".key.k{gold} .chip")
    opened.click("input[value=factor]")
    assert colour(opened, "#wrong") == by_factor
    opened.click("input[value=shade]")
    factor = opened.run("document.querySelector('#wrong').dataset.f")
    assert colour(opened, "#wrong") == colour(opened, f".key.k{factor} .chip")


def test_the_gold_underline_can_be_switched_off(opened):
    line = "getComputedStyle(document.querySelector('.w[data-g]')).boxShadow"
    assert "inset" in opened.run(line)
    opened.click("input[value=underline]")
    assert opened.run(line) == "none"


def test_one_factor_can_be_seen_alone(opened):
    opened.click(".key[data-factor='3']")
    lit = "[...new Set([...document.querySelectorAll('.w:not(.dim)')].map(w => w.dataset.f))]"
    assert opened.run(lit) == ["3"]
    assert opened.run("document.querySelector(\".key[data-factor='3']\").ariaPressed") == "true"
    opened.click(".key[data-factor='3']")
    assert len(opened.run(lit)) > 1


def test_tables_are_sorted(opened, report):
    f1 = "[...document.querySelectorAll('#factors tbody tr')].map(r => r.cells[4].textContent)"
    names = "[...document.querySelectorAll('#factors tbody tr')].map(r => r.cells[1].textContent)"
    opened.click("#factors th:nth-child(5) button")
    falling = [float(x) for x in opened.run(f1)]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] != falling[-1]
    opened.click("#factors th:nth-child(5) button")
    assert [float(x) for x in opened.run(f1)] == falling[::-1]
    assert opened.run("document.querySelectorAll('#factors th')[4].ariaSort") == "ascending"
    opened.click("#factors th:nth-child(2) button")
    assert opened.run(names) == sorted(report[0].labels)


def test_dark_and_light(opened):
    paper = "getComputedStyle(document.body).backgroundColor"
    light = colour(opened, ".key .chip")
    assert opened.run(paper) == "rgb(255, 255, 255)"
    opened.view(dark=True)
    assert opened.run(paper) == "rgb(21, 24, 29)"
    assert colour(opened, ".key .chip") != light
    opened.click("#theme")  # from auto to light
    assert opened.run(paper) == "rgb(255, 255, 255)"
    opened.click("#theme")
    opened.view(dark=False)
    assert opened.run(paper) == "rgb(21, 24, 29)"


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_the_page_fits_its_window(opened, width):
    opened.view(width=width)
    assert opened.run("document.documentElement.scrollWidth <= innerWidth")


def test_on_paper_it_is_light_and_without_switches(opened):
    opened.view(dark=True, media="print")
    assert opened.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    shown = "getComputedStyle(document.querySelector('.controls')).display"
    assert opened.run(shown) == "none"
    assert opened.run("getComputedStyle(document.querySelector('.legend')).display") == "flex"


def test_hostile_texts_are_only_texts(browser, tmp_path):
    texts = {n: t for n, t in HOSTILE.items() if n != "surrogate"}
    rationales = [fakes.text_rationale(text, num_factors=3) for text in texts.values()]
    path = tmp_path / "page.html"
    page = as_page(rationales, list(texts.values())[:3], title=texts["script"])
    path.write_text(page, encoding="utf-8", newline="")
    browser.view()
    browser.open(path)
    shown = browser.run("[...document.querySelectorAll('.text')].map(x => x.textContent)")
    assert shown == [visible(text) for text in texts.values()]
    assert browser.run("document.scripts.length + document.images.length") == 1
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    browser.hover(".text:nth-of-type(3) .w")
    names = browser.run("[...document.querySelectorAll('#tip .row span')].map(x => x.textContent)")
    assert names[0] in {visible(t, keep="") for t in texts.values()}
    assert browser.complaints() == []


def test_the_policy_stops_what_would_get_through(browser, report, tmp_path):
    path = tmp_path / "broken.html"
    bad = "<script>document.title = 'owned'</script><img src='https://example.com/x.png' onerror=\"document.title='owned'\">"
    path.write_text(report[1].replace("<main>", "<main>" + bad), encoding="utf-8")
    browser.open(path)
    browser.frames()
    assert browser.run("document.title") == "A report"
    assert len([c for c in browser.complaints() if "Content Security Policy" in c]) >= 2


def test_many_factors_and_no_gold_labels(browser, tmp_path):
    assessment = fakes.assessment(num_factors=40, gold=False, num_samples=3)
    path = tmp_path / "report.html"
    path.write_text(render_report(assessment, [], title="t", config_text=""), encoding="utf-8")
    browser.view()
    browser.open(path)
    assert browser.run("document.querySelectorAll('.controls input[type=radio]').length") == 0
    browser.hover(".text .w")
    shown = browser.run("[...document.querySelectorAll('#tip .row')].map(x => x.innerText)")
    assert len(shown) == 15
    assert "26 others" in shown[-1]
    assert browser.complaints() == []
