"""scripts/compare_studies.py: several studies side by side."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
from absl import flags

from moe_jax.errors import UserError

PATH = Path(__file__).resolve().parents[2] / "scripts" / "compare_studies.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("compare_studies", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    delattr(flags.FLAGS, "measure")


def study(p, change=-0.5):
    """One with an intervention on experts and one on layers, which has no random sets."""

    def row(spec, experts, value):
        effect = {"change": {"mean": change}, "control": {"mean": -0.1}, "p_control": value}
        return {"spec": spec, "experts": experts, "effects": {"accuracy": effect}}

    rows = [
        row("zero@all", "selected", p),
        row("random@all", "selected", None),
        row("zero@all", "opposite", 0.9),
    ]
    return {"rows": rows, "measures": [{"name": "accuracy"}]}


def test_p_of_two_studies_is_fishers(script):
    """Two p: chi-squared of 4 degrees of freedom, whose tail is q (1 - ln q) for q = p1 p2."""
    (found,) = script.compare([study(0.05, -0.4), study(0.2, -0.6)], "accuracy")
    q = 0.05 * 0.2
    assert found.spec == "zero@all"
    assert found.change == [-0.4, -0.6]
    assert found.control == [-0.1, -0.1]
    assert found.p == [0.05, 0.2]
    assert found.together == pytest.approx(q * (1 - math.log(q)))


def test_folders_and_files(script, tmp_path):
    inner = tmp_path / "run" / "misroute"
    inner.mkdir(parents=True)
    (inner / "misroute.json").write_text(json.dumps(study(0.1)))
    for path in (tmp_path / "run", inner, inner / "misroute.json"):
        assert script.read_study(path) == study(0.1)


def test_bad_input(script, tmp_path):
    with pytest.raises(UserError, match=r"no misroute\.json there"):
        script.read_study(tmp_path)
    (tmp_path / "misroute.json").write_text("{}")
    with pytest.raises(UserError, match="not a study"):
        script.read_study(tmp_path)
    with pytest.raises(UserError, match="measure=acuracy is unknown: use one of accuracy"):
        script.compare([study(0.1)] * 2, "acuracy")
    with pytest.raises(UserError, match="no intervention has matched random sets"):
        script.compare([study(0.1), study(None)], "accuracy")
