"""Small records of each kind that the library stores as JSON, with every corner of its format.

`write(folder)` writes them as the library does. The files in stored/ are what it wrote at commit
d7cc5ac, where each kind had a codec of its own:

    python -c "from tests.common import made_records as m; m.write('tests/common/stored')"
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Literal

import numpy as np

from moe_jax.common import Log, to_json
from moe_jax.misrouting import misroute_files, profile_files
from moe_jax.misrouting import profile_data as data
from moe_jax.rationale import Assessment, LabelScores, MethodScores, TextRationale
from moe_jax.rationale.assess import to_json as assessment_json
from tests.misrouting import made_study

FILES = ("config.json", "conditions.jsonl", "profile.json", "misroute.json", "assessment.json")


@dataclasses.dataclass(kw_only=True)
class InnerConfig:
    """What a config has inside."""

    rate: float = 1 / 3
    mode: Literal["fast", "exact"] = "exact"
    layers: tuple[int, ...] | None = None
    on: bool = True


@dataclasses.dataclass(kw_only=True)
class MadeConfig:
    """A config with nested ones, tuples, None and numbers of every kind."""

    rates: tuple[float, ...] = (0.1, 1e-12, 3.0)
    names: list[str] = dataclasses.field(default_factory=lambda: ["ä", "\u2028", '"'])
    sizes: dict[str, int] = dataclasses.field(default_factory=lambda: {"a": 1, "b": 2**62})
    inner: InnerConfig = dataclasses.field(default_factory=InnerConfig)
    more: InnerConfig | None = dataclasses.field(default_factory=lambda: InnerConfig(layers=(1, 3)))
    written: int = dataclasses.field(default=5, init=False)
    system: str = "made"


def log_records() -> list[dict]:
    """What a study appends."""
    numbers = [math.nan, math.inf, -math.inf, 1, 0.1]
    return [
        {"key": "a", "x": np.arange(6, dtype=np.float32).reshape(2, 3) / 7, "deep": {"y": numbers}},
        {"key": "b", "text": "inf\nnull ä", "flag": np.bool_(True), "n": np.int64(7), 3: (1, 2)},
        {"key": "c", "empty": np.zeros((0, 4)), "nan": np.array([math.nan, 1.5]), "none": None},
    ]


def profile() -> data.Profile:
    """Two layers of two experts, three prompts of two levels; one without halves would be alike."""
    le = np.array([[0.12345678901234, 1 / 3], [math.nan, 2e-20]])
    l_ = np.array([0.5, math.nan])
    flags = np.array([[True, False], [False, False]])
    ids = np.array([0, 1])
    return data.Profile(
        model=data.ModelShape("made", (1, 3), 2, 1),
        settings=data.ProfileSettings(weights=(-1.0, 1.0), system="be\nbrief", seed=3),
        difficulty=(1.0, 2.5),
        level=np.array([0, 1, 1]),
        group=("", "g", "g"),
        stratum=np.array([0, 1, 1]),
        tokens=np.array([3, 4, 5]),
        length=np.array([6, 7, 8]),
        usage=np.arange(12.0).reshape(3, 2, 2) / 7,
        dropped=np.zeros((3, 2)),
        means=data.LevelMeans(*np.stack([np.stack([le, le + 1])] * 3)),
        scores=data.Scores(*[le * i for i in range(len(data.Scores._fields))]),
        ranking=np.array([3, 0, 1, 2]),
        selection=data.Selection(
            *(True, ids[:1], ids[1:], ids, ids, l_, l_, l_, l_, 0.5, math.nan, le, -le)
        ),
        balance=data.Balance(
            *(le, l_, l_, l_, flags, ~flags, le, l_),
            pairs=np.zeros((0, 2, 2), np.int64),
        ),
        top_tokens=(data.TopTokens(1, 0, ("a", "ä "), (3, 2), (0.75, 2 / 3)),),
        samples=(data.Sample(0, ("x", "y"), np.array([True, False]), np.zeros((2, 2, 1), int)),),
        compared=(data.Compared("twin", l_, l_, l_, l_, le, le, math.nan),),
    )


def assessment() -> Assessment:
    """Two labels and two factors, a text without tokens and one without labels."""
    pair = np.array([1 / 3, 0.5])
    scores = LabelScores(pair, pair, pair, np.array([3, 0]), 0.4, 0.5, 1 / 7)
    probs = np.array([[0.1, 0.9], [1 / 3, 2 / 3]], np.float32)
    offsets = np.array([[0, 2], [2, 5]])
    return Assessment(
        labels=["warm", "ä"],
        methods=[MethodScores("model", scores, scores, 0.25)],
        mapping=np.array([1, -1]),
        usage=np.array([0.25, 0.75]),
        monitors={"dead_factors": 1.0, "max_share": np.float64(0.75)},
        rationale_scores={},
        faithfulness={"sufficiency": -0.125},
        top_words=[[("a", 1.5), ("b", 0.1)], []],
        samples=[
            TextRationale("ab cde", offsets, probs, np.array([0, -1])),
            TextRationale("", np.zeros((0, 2), int), np.zeros((0, 2), np.float32)),
        ],
    )


def write(folder: str | Path) -> None:
    """Write FILES, and the tables that go with them."""
    folder = Path(folder)
    (folder / "config.json").write_text(json.dumps(to_json(MadeConfig()), indent=2) + "\n")
    log = Log(folder / "conditions.jsonl")
    for record in log_records():
        log.add(record)
    profile_files.write_profile(profile(), folder)
    misroute_files.write_files(made_study.study(), folder)
    text = json.dumps(assessment_json(assessment())) + "\n"
    (folder / "assessment.json").write_text(text)
