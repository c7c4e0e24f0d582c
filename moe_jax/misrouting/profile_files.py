"""A profile on disk: profile.json with everything, and two tables for spreadsheets.

profile.json is one object. Besides "profile", which `read_profile` gives back, it has what Stage 2
needs by plain names: "selected" [[layer of the model, expert], ...], chosen on half A;
"test_prompts", the numbers of half B; "expert_layers", "num_experts"; and of half A "usage_mean"
[l][e] and "z" [l][e]. A number that isn't one (NaN) is null. Letters: l layers with experts, e
experts of each.
"""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from moe_jax.common.files import file_errors, local_path, read_object, write_atomically
from moe_jax.common.schema import from_json, plain
from moe_jax.errors import UserError
from moe_jax.misrouting.profile_data import Profile

FILES = ("profile.json", "profile.csv", "usage.csv")
_DIGITS = 10  # significant, of a float in a file


def write_profile(profile: Profile, workdir: Path) -> None:
    """Write profile.json, profile.csv and usage.csv, each whole or not at all.

    Raises:
      UserError: one can't be written.
    """
    workdir = local_path(workdir, "workdir")
    with file_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / "profile.csv", experts_csv(profile))
    write_atomically(workdir / "usage.csv", usage_csv(profile))
    write_atomically(workdir / "profile.json", json.dumps(to_json(profile)) + "\n")


def read_profile(workdir: Path) -> Profile:
    """The profile that `write_profile` wrote there; floats to ten digits.

    Raises:
      UserError: there is none, or it isn't one.
    """
    workdir = local_path(workdir, "workdir")
    file = workdir / "profile.json"
    missing = f"{file}: no such file; launch/profile_routing.py --workdir={workdir} makes it"
    values = read_object(file, missing=missing)
    if "profile" not in values:
        raise UserError(f"{file}: not a profile (it has no field 'profile')")
    try:
        return from_json(Profile, values["profile"], "profile", null_is_nan=True)
    except UserError as error:
        raise UserError(f"{file}: not a profile ({error})") from None


def to_json(profile: Profile) -> dict[str, Any]:
    """What profile.json holds."""
    chosen = profile.selection
    values = {
        "selected": np.stack([chosen.layer, chosen.expert], axis=1),
        "test_prompts": chosen.half_b,
        "expert_layers": profile.model.expert_layers,
        "num_experts": profile.model.num_experts,
        "usage_mean": chosen.usage_mean,
        "z": chosen.z,
        "profile": profile,
    }
    found: dict[str, Any] = plain(values, number=_ten_digits, empty_shapes=True)
    return found


def experts_csv(profile: Profile) -> str:
    """One row for each layer and expert, by rank."""
    s, experts = profile.scores, profile.model.num_experts
    chosen = set(
        zip(profile.selection.layer.tolist(), profile.selection.expert.tolist(), strict=True)
    )
    rows: list[list[Any]] = [
        ["rank", "layer", "expert", *s._fields, "usage_mean", "load", "dead", "selected"]
        + [f"usage_at_{d:g}" for d in profile.difficulty]
    ]
    mean = profile.usage.mean(axis=0)
    for rank, column in enumerate(profile.ranking.tolist(), start=1):
        at = divmod(column, experts)
        layer, expert = profile.model.expert_layers[at[0]], at[1]
        balance = profile.balance
        rows.append(
            [rank, layer, expert, *(_figure(a[at]) for a in s), _figure(mean[at])]
            + [_figure(balance.load[at]), int(balance.dead[at]), int((layer, expert) in chosen)]
            + [_figure(m[at]) for m in profile.means.mean]
        )
    return _csv(rows)


def usage_csv(profile: Profile) -> str:
    """One row for each prompt: u(x), a column for each layer and expert."""
    layers, experts = profile.model.expert_layers, range(profile.model.num_experts)
    rows: list[list[Any]] = [
        ["prompt", "difficulty", "group", "half", "tokens"]
        + [f"dropped_layer{m}" for m in layers]
        + [f"layer{m}_expert{e}" for m in layers for e in experts]
    ]
    half = np.full(len(profile.level), "B")
    half[profile.selection.half_a] = "A"
    for i, level in enumerate(profile.level):
        rows.append(
            [i, f"{profile.difficulty[level]:g}", profile.group[i]]
            + [half[i] if profile.selection.halved else "", int(profile.tokens[i])]
            + [_figure(v) for v in (*profile.dropped[i], *profile.usage[i].ravel())]
        )
    return _csv(rows)


def _csv(rows: list[list[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _figure(value: float) -> str:
    return f"{value:.{_DIGITS}g}"


def _ten_digits(value: float) -> float | None:
    return float(_figure(value)) if math.isfinite(value) else None
