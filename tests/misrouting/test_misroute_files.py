"""misroute.json and misroute.csv against the study that they are of."""

import csv
import io
import json
import math

import numpy as np
import pytest

from moe_jax.errors import UserError
from moe_jax.misrouting import misroute_files
from tests.misrouting import made_study


def written(study, folder):
    misroute_files.write_files(study, folder)
    return json.loads((folder / "misroute.json").read_text()), list(
        csv.DictReader(io.StringIO((folder / "misroute.csv").read_text()))
    )


def test_json_has_every_field_by_name(tmp_path):
    study = made_study.study()
    values, _ = written(study, tmp_path / "new" / "folder")
    assert set(values) == set(study._fields)
    assert values["accuracy"] == {"mean": 0.625, "low": 0.5, "high": 0.75}
    first = values["rows"][0]
    assert first["effects"]["accuracy"]["change"] == {"mean": -0.375, "low": -0.5, "high": -0.25}
    assert first["against"]["filler"]["faithfulness"] == {"mean": 0.5, "low": 0.25, "high": 0.75}
    assert first["against"]["filler"]["partial"] is None
    assert values["rows"][1]["effects"]["filler"]["value"] is None
    assert values["measures"][3]["diagnosticity"]["value"] == 0.95
    assert values["measures"][0]["diagnosticity"] is None
    assert values["mediation"]["suppress@all"]["share"]["mean"] is None
    np.testing.assert_array_equal(
        values["mediation"]["suppress@all"]["effect"], study.mediation["suppress@all"].effect
    )
    assert values["zero_dose"] == {"suppress": True, "bias=0": False}
    assert values["selected"] == [[1, 2], [3, 0]]
    assert values["agreement"]["answer"] == [0.1, 0.9, -0.2]


def test_json_keeps_infinities_and_is_strict(tmp_path):
    rows = [made_study.row(accuracy=made_study.effect(math.inf))]
    values, _ = written(made_study.study(rows=rows), tmp_path)
    assert values["rows"][0]["effects"]["accuracy"]["change"]["mean"] == {"inf": 1}
    assert "NaN" not in (tmp_path / "misroute.json").read_text()


def test_csv_is_long(tmp_path):
    study = made_study.study()
    _, lines = written(study, tmp_path)
    assert len(lines) == len(study.rows) * len(made_study.NAMES)
    assert tuple(lines[0]) == misroute_files.COLUMNS
    assert lines[0] == {
        **{"spec": "suppress@all", "experts": "selected", "measure": "accuracy"},
        **{"group": "performance", "base": "0.5", "value": "0.125", "change": "-0.375"},
        **{"low": "-0.5", "high": "-0.25", "p": "0.25", "p_holm": "0.01"},
        **{"control_mean": "0.03125", "control_low": "-0.0625", "control_high": "0.09375"},
        **{"p_control": "0.04", "prompts": "40", "diagnosticity": "", "floor": "0"},
    }
    by_key = {(x["spec"], x["experts"], x["measure"]): x for x in lines}
    assert by_key["suppress@all", "selected", "early"]["diagnosticity"] == "0.05"
    assert by_key["suppress@all", "opposite", "accuracy"]["p_holm"] == ""
    gone = by_key["random@answer", "selected", "filler"]
    assert gone["value"] == gone["change"] == gone["p_control"] == ""
    assert gone["prompts"] == "0"
    assert by_key["suppress@all", "selected", "js"]["floor"] == "2.5e-14"


def test_csv_leaves_out_measures_without_an_effect():
    rows = [made_study.row()]
    rows[0].effects.pop("js")
    text = misroute_files.as_csv(made_study.study(rows=rows))
    assert len(text.splitlines()) == len(made_study.NAMES)
    assert ",js," not in text


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        misroute_files.write_files(made_study.study(), tmp_path / "file")
