"""Records as JSON and back: the bytes of each format, and what is refused by name.

That a config of the library comes back, and what is refused of one, is in training/test_config.py.
"""

import dataclasses
import json
import math
import pathlib
import shutil
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
from jaxtyping import Bool, Float, Int

from moe_jax.common import Log, from_json
from moe_jax.common.schema import marked, plain, unmarked
from moe_jax.errors import UserError
from moe_jax.misrouting.profile_files import read_profile
from moe_jax.rationale.assess import read_assessment, to_json
from tests.common import made_records as made

STORED = pathlib.Path(__file__).parent / "stored"


class Point(NamedTuple):
    x: float
    y: int = 0


class Arrays(NamedTuple):
    real: Float[np.ndarray, "rows 2"]
    whole: Int[np.ndarray, " n"]
    flags: Bool[np.ndarray, "n n"]


@dataclasses.dataclass(frozen=True)
class Mixed:
    point: Point
    mode: Literal["a", "b"]
    size: int | None
    pairs: tuple[tuple[str, float], ...]
    by_name: dict[str, Point]
    anything: Any = None


ARRAYS = Arrays(np.array([[0.5, math.nan]]), np.array([3, 4]), np.eye(2, dtype=bool))
MIXED = Mixed(Point(1.5, 2), "a", None, (("x", 0.5),), {"p": Point(0.0)}, [1, {"a": None}])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    made.write(folder)
    return folder


@pytest.mark.parametrize("name", made.FILES)
def test_every_format_is_as_it_was_byte_for_byte(written, name):
    assert (written / name).read_bytes() == (STORED / name).read_bytes()


def test_a_stored_config_comes_back():
    values = json.loads((STORED / "config.json").read_text())
    assert from_json(made.MadeConfig, values) == made.MadeConfig()


def test_a_stored_log_comes_back(tmp_path):
    file = shutil.copy(STORED / "conditions.jsonl", tmp_path)
    records = Log(pathlib.Path(file)).records
    nan, *rest = records["a"]["deep"]["y"]
    assert math.isnan(nan)
    assert rest == [math.inf, -math.inf, 1, 0.1]
    np.testing.assert_array_equal(records["a"]["x"], made.log_records()[0]["x"])
    assert records["b"] == {"key": "b", "text": "inf\nnull ä", "flag": True, "n": 7, "3": [1, 2]}
    assert math.isnan(records["c"]["none"])


def test_a_stored_profile_comes_back():
    found, right = read_profile(STORED), made.profile()
    np.testing.assert_allclose(found.usage, right.usage, rtol=1e-9)
    np.testing.assert_allclose(found.selection.z, right.selection.z, rtol=1e-9)
    assert np.isnan(found.scores.p[1, 0])
    assert math.isnan(found.compared[0].score_correlation)
    assert found.balance.pairs.shape == (0, 2, 2)
    assert [a.dtype for a in (found.usage, found.level, found.balance.dead)] == [float, int, bool]
    assert (found.settings, found.model) == (right.settings, right.model)
    assert found.top_tokens[0].pieces == ("a", "ä ")


def test_a_stored_assessment_comes_back():
    found, right = read_assessment(STORED / "assessment.json"), made.assessment()
    for text, its in zip(found.samples, right.samples, strict=True):
        assert (text.text, text.probs.dtype, text.offsets.dtype) == (its.text, np.float32, int)
        np.testing.assert_array_equal(text.probs, its.probs)
        np.testing.assert_array_equal(text.offsets, its.offsets)
    assert found.samples[1].labels is None
    np.testing.assert_array_equal(found.samples[0].labels, right.samples[0].labels)
    assert found.top_words == right.top_words
    assert json.dumps(to_json(found)) + "\n" == (STORED / "assessment.json").read_text()


def test_named_tuples_and_literals_there_and_back():
    values = json.loads(json.dumps(plain(MIXED)))
    assert values["point"] == {"x": 1.5, "y": 2}
    assert from_json(Mixed, values) == MIXED


def test_arrays_there_and_back():
    values = json.loads(json.dumps(plain(ARRAYS, number=marked)))
    assert values == {
        "real": [[0.5, None]],
        "whole": [3, 4],
        "flags": [[True, False], [False, True]],
    }
    found = from_json(Arrays, values, null_is_nan=True)
    for a, b in zip(found, ARRAYS, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def test_an_empty_array_keeps_its_shape_if_asked_to():
    empty = Arrays(np.zeros((0, 2)), np.zeros(0, int), np.zeros((0, 0), bool))
    values = plain(empty, empty_shapes=True)
    assert values["real"] == {"empty": [0, 2]}
    assert [a.shape for a in from_json(Arrays, values)] == [(0, 2), (0,), (0, 0)]
    assert plain(empty)["real"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"point": [1.5, 2]}, "top.point=[1.5, 2]: must be an object of fields"),
        ({"point": {"x": 1.5}}, "top.point.y: missing"),
        ({"point": {"x": 1, "y": 2, "z": 3}}, "top.point.z: Point has no such field"),
        ({"point": {"x": None, "y": 2}}, "top.point.x=None: must be float"),
        ({"point": {"x": 1, "y": True}}, "top.point.y=True: must be int"),
        ({"point": {"x": 10**400, "y": 1}}, f"top.point.x=1{'0' * 76}...: must be float"),
        ({"mode": "c"}, "top.mode='c': must be one of 'a', 'b'"),
        ({"size": 2**63}, f"top.size={2**63}: must be at most {2**63 - 1}, and at least"),
        ({"size": 1.0}, "top.size=1.0: must be int"),
        ({"pairs": [["x"]]}, "top.pairs[0]=['x']: must have 2 values"),
        ({"pairs": [["x", "y"]]}, "top.pairs[0][1]='y': must be float"),
        ({"by_name": {"p": 3}}, "top.by_name.p=3: must be an object of fields"),
    ],
)
def test_records_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError) as caught:
        from_json(Mixed, plain(MIXED) | change, "top")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "null_is_nan"),
    [
        ({"real": [[0.5, None]]}, False),
        ({"real": [[0.5, "1"]]}, True),
        ({"real": [[0.5], [1.0, 2.0]]}, True),
        ({"real": [0.5, 1.0]}, True),
        ({"real": [[0.5, 1.0, 2.0]]}, True),
        ({"real": 0.5}, True),
        ({"real": None}, True),
        ({"real": {"empty": [3, 2]}}, True),
        ({"real": {"empty": "x"}}, True),
        ({"real": {"empty": [0, -1]}}, True),
        ({"real": {}}, True),
        ({"whole": [3, 4.5]}, True),
        ({"whole": [3, None]}, True),
        ({"whole": [2**63]}, True),
        ({"flags": [[0, 1], [1, 0]]}, True),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, null_is_nan):
    ((name, value),) = change.items()
    values = {"real": [[0.5, 1]], "whole": [3], "flags": [[True]]} | change
    with pytest.raises(UserError) as caught:
        from_json(Arrays, values, "top", null_is_nan=null_is_nan)
    assert str(caught.value).startswith(f"top.{name}={value!r}: must be an array ")


def test_plain_keeps_text_and_nesting():
    assert plain({"a": (1, [np.float32(0.5), "inf"]), 2: None}) == {
        "a": [1, [0.5, "inf"]],
        "2": None,
    }


def test_what_json_has_no_word_for_is_refused():
    with pytest.raises(TypeError, match="a set can't be stored"):
        plain({"a": [{1}]})


def test_marked_numbers_come_back():
    values = [math.inf, -math.inf, 0.5, {"inf": 2}]
    assert unmarked(plain(values, number=marked)) == values
    assert math.isnan(unmarked(marked(math.nan)))
