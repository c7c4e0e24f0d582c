"""profile.json, profile.csv and usage.csv: what is in them, and back again."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest

from moe_jax.errors import UserError
from moe_jax.misrouting.profile import compare
from moe_jax.misrouting.profile_files import FILES, read_profile, write_profile
from tests.misrouting import small_study
from tests.misrouting.small_study import QUICK


def same(a, b):
    """Are both alike, to the digits that files hold?"""
    assert type(a) is type(b)
    if hasattr(a, "_fields"):
        assert a._fields == b._fields
    if isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype.kind == b.dtype.kind
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-300)
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-9, nan_ok=True)
    else:
        assert a == b


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile") / "new"
    settings = dataclasses.replace(QUICK, weights=(-1.0, 0.0, 1.0), minimum=10_000)
    _, collected, result = small_study.study(settings)
    result = result._replace(compared=(compare(result, collected, "twin", collected),))
    write_profile(result, folder)
    return folder, result


def test_there_and_back(stored):
    folder, result = stored
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    assert np.isnan(result.balance.vocabulary).all()  # a NaN is among what goes there and back
    same(result, read_profile(folder))


def test_without_pairs_and_scores(tmp_path):
    result = small_study.study()[2]
    balance = result.balance._replace(
        pairs=np.zeros((0, 4, 4), np.int64), entropy=np.full((3, 2), np.nan)
    )
    result = result._replace(balance=balance, samples=())
    write_profile(result, tmp_path)
    same(result, read_profile(tmp_path))


def test_what_stage_2_reads(stored):
    folder, result = stored
    values = json.loads((folder / "profile.json").read_text())
    chosen = result.selection
    assert values["selected"] == [
        [int(m), int(e)] for m, e in zip(chosen.layer, chosen.expert, strict=True)
    ]
    assert {m for m, _ in values["selected"]} <= set(values["expert_layers"]) == {1, 3}
    assert values["num_experts"] == 4
    assert values["test_prompts"] == chosen.half_b.tolist()
    np.testing.assert_allclose(values["usage_mean"], chosen.usage_mean, rtol=1e-9)
    np.testing.assert_allclose(values["z"], chosen.z, rtol=1e-9)


def test_the_table_of_experts(stored):
    folder, result = stored
    rows = list(csv.DictReader(io.StringIO((folder / "profile.csv").read_text())))
    assert len(rows) == 8
    assert [int(r["rank"]) for r in rows] == list(range(1, 9))
    sizes = [abs(float(r["score"])) for r in rows]
    assert sizes == sorted(sizes, reverse=True)
    for row in rows:
        at = result.model.expert_layers.index(int(row["layer"])), int(row["expert"])
        for name in result.scores._fields:
            assert float(row[name]) == pytest.approx(getattr(result.scores, name)[at], rel=1e-8)
        for d in range(3):
            assert float(row[f"usage_at_{d + 1}"]) == pytest.approx(result.means.mean[d][at])
    chosen = {(int(r["layer"]), int(r["expert"])) for r in rows if r["selected"] == "1"}
    pairs = zip(result.selection.layer, result.selection.expert, strict=True)
    assert chosen == {(int(m), int(e)) for m, e in pairs}


def test_the_table_of_prompts(stored):
    folder, result = stored
    rows = list(csv.DictReader(io.StringIO((folder / "usage.csv").read_text())))
    assert len(rows) == 18
    for i, row in enumerate(rows):
        assert float(row["difficulty"]) == result.difficulty[result.level[i]]
        assert (row["half"] == "A") == (i in result.selection.half_a)
        assert float(row["layer3_expert2"]) == pytest.approx(result.usage[i, 1, 2])
        assert float(row["dropped_layer1"]) == 0
        assert (row["group"], row["tokens"]) == (result.group[i], "11")


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "no such file; launch/profile_routing.py --workdir="),
        ("{", "can't be read"),
        ("[]", "must hold one JSON object, not a list"),
        ("{}", "not a profile"),
        ('{"profile": {"model": 3}}', "not a profile"),
    ],
)
def test_what_is_no_profile(tmp_path, text, message):
    if text is not None:
        (tmp_path / "profile.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_profile(tmp_path)


def test_numbers_of_another_kind_are_no_profile(stored, tmp_path):
    values = json.loads((stored[0] / "profile.json").read_text())
    values["profile"]["level"][0] = 0.5
    (tmp_path / "profile.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="not a profile"):
        read_profile(tmp_path)


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        write_profile(small_study.study()[2], tmp_path / "file" / "inside")
