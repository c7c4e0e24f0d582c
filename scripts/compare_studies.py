r"""Studies side by side: do selected experts matter more than random ones, whatever the seed?

  python scripts/compare_studies.py runs/study runs/seed1 runs/seed2 [--measure=corrupt_drop]

Takes folders of `make study` (or misroute.json files). For each intervention on experts it prints,
study by study, the change under the selected experts, the mean change under the matched random
sets, and p of the sets; then p over all studies together (Fisher's method, which is conservative
here: a study's p can't be below 1 / (sets + 1)).
"""

import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags
from rich.console import Console
from scipy import stats

from moe_jax.common import local_path, read_object
from moe_jax.common.files import check_text
from moe_jax.errors import UserError
from moe_jax.reports import Column, show_table

MEASURE = flags.DEFINE_string("measure", "accuracy", "a measure of the studies")


class Compared(NamedTuple):
    """One intervention on the selected experts, in several studies.

    Attributes:
      spec: the intervention, "suppress@all".
      change: of the measure, of each study.
      control: mean change under its random sets.
      p: of its sets.
      together: of all studies.
    """

    spec: str
    change: list[float]
    control: list[float]
    p: list[float]
    together: float


def read_study(path: Path) -> dict[str, Any]:
    """The misroute.json of a folder of `make study`, of its misroute folder, or itself.

    Raises:
      UserError: there is none, or it isn't one.
    """
    places = (path, path / "misroute.json", path / "misroute" / "misroute.json")
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UserError(f"{path}: no misroute.json there; launch/misroute.py makes one")
    values = read_object(file)
    try:
        _ = [check_text(one["name"], "name", "measures") for one in values["measures"]]
        for row in values["rows"]:
            _ = check_text(row["spec"], "spec", "rows"), row["experts"]
            for effect in row["effects"].values():
                if effect["p_control"] is not None:
                    means = effect["change"]["mean"], effect["control"]["mean"]
                    _ = [n + 0.0 for n in (*means, effect["p_control"])]
    except (KeyError, TypeError, AttributeError, OverflowError, UserError) as error:
        raise UserError(f"{file}: not a study ({type(error).__name__}: {error})") from None
    return values


def compare(studies: list[dict[str, Any]], measure: str) -> list[Compared]:
    """The interventions on experts that all studies have.

    Raises:
      UserError: no such measure, or no intervention with random sets in all studies.
    """
    known = [one["name"] for one in studies[0]["measures"]]
    if measure not in known:
        raise UserError(f"measure={measure} is unknown: use one of {', '.join(known)}")
    effects = [
        {
            row["spec"]: row["effects"][measure]
            for row in study["rows"]
            if row["experts"] == "selected" and measure in row["effects"]
            if row["effects"][measure]["p_control"] is not None
        }
        for study in studies
    ]
    specs = [spec for spec in effects[0] if all(spec in mine for mine in effects)]
    if not specs:
        raise UserError("no intervention has matched random sets in all of the studies")
    found = []
    for spec in specs:
        p = [mine[spec]["p_control"] for mine in effects]
        found.append(
            Compared(
                spec,
                [mine[spec]["change"]["mean"] for mine in effects],
                [mine[spec]["control"]["mean"] for mine in effects],
                p,
                float(stats.combine_pvalues(p, method="fisher").pvalue),
            )
        )
    return found


def main(argv: list[str]) -> None:
    """Read, compare, print."""
    if len(argv) < 3:
        raise app.UsageError("name two studies or more")
    try:
        studies = [read_study(local_path(name, "study")) for name in argv[1:]]
        found = compare(studies, MEASURE.value)
    except UserError as error:
        sys.exit(f"error: {error}")
    words = [Column(title, number=False) for title in ("intervention", "study")]
    columns = [*words, *map(Column, ("selected experts", "random sets", "p of the sets"))]
    rows: list[list[str | float]] = []
    for one in found:
        rows += map(list, zip([one.spec] * len(studies), argv[1:], *one[1:4], strict=True))
        means = [statistics.fmean(values) for values in (one.change, one.control)]
        rows.append([one.spec, "mean, and p together", *means, f"{one.together:.2g}"])
    console = Console()
    title = f"Change of {MEASURE.value}"
    show_table(console if console.is_terminal else Console(width=110), title, columns, rows)


if __name__ == "__main__":
    app.run(main)
