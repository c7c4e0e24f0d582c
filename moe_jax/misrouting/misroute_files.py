"""A Stage 2 study on disk: misroute.json with everything, misroute.csv for spreadsheets."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from moe_jax.common.files import file_errors, write_atomically
from moe_jax.common.schema import marked, plain
from moe_jax.misrouting.study_results import Measure, Row, Study

FILES = ("misroute.json", "misroute.csv")
COLUMNS = (
    *("spec", "experts", "measure", "group", "base", "value", "change", "low", "high"),
    *("p", "p_holm", "control_mean", "control_low", "control_high", "p_control", "prompts"),
    *("diagnosticity", "floor"),
)
"""Of misroute.csv."""
_DIGITS = 10  # significant, of a float in misroute.csv


def write_files(study: Study, workdir: Path) -> None:
    """Write misroute.json and misroute.csv, each whole or not at all.

    misroute.json has the fields of `Study` by name, nested ones too; NaN is null. misroute.csv has
    one line for each intervention and measure, with COLUMNS; NaN is an empty field.

    Args:
      study: what was found.
      workdir: made if need be.

    Raises:
      UserError: one can't be written.
    """
    with file_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / "misroute.csv", as_csv(study))
    text = json.dumps(to_json(study), allow_nan=False, indent=1)
    write_atomically(workdir / "misroute.json", text + "\n")


def to_json(study: Study) -> dict[str, Any]:
    """What misroute.json holds."""
    found: dict[str, Any] = plain(study, number=marked)
    return found


def as_csv(study: Study) -> str:
    """What misroute.csv holds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in study.rows:
        writer.writerows(_line(row, measure) for measure in study.measures if _has(row, measure))
    return out.getvalue()


def _has(row: Row, measure: Measure) -> bool:
    return measure.name in row.effects


def _line(row: Row, measure: Measure) -> list[str]:
    effect = row.effects[measure.name]
    truth = math.nan if measure.diagnosticity is None else measure.diagnosticity.value
    before = (effect.base, effect.value, *effect.change, effect.p, effect.p_holm)
    after = (*effect.control, effect.p_control)
    return [
        *(row.spec, row.experts, measure.name, measure.group),
        *(_figure(value) for value in (*before, *after)),
        str(effect.prompts),
        *(_figure(value) for value in (truth, measure.floor)),
    ]


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.{_DIGITS}g}"
