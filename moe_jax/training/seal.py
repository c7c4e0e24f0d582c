"""The seal of a checkpoint: run.json, which holds the hash of every other file, and its own."""

import hashlib
import json
from pathlib import Path
from typing import Any

from moe_jax.common.files import parse, read_object
from moe_jax.errors import UserError


class Damaged(Exception):
    """The files of a checkpoint are not those that were written."""


def write_record(folder: Path, run: dict[str, Any]) -> None:
    """Write run.json: `run`, with the SHA-256 of every file that is in the folder now."""
    run["files"] = {name: _sha256(folder / name) for name in _files(folder)}
    body = json.dumps(run)
    sealed = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "run": body}
    (folder / "run.json").write_text(json.dumps(sealed), encoding="utf-8")


def verified(folder: Path) -> dict[str, Any]:
    """The content of run.json, once every file has been found to be what was written.

    Raises:
      Damaged: one is missing or was changed.
    """
    run = record(folder)
    for name, expected in run["files"].items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        if _sha256(path) != expected:
            raise Damaged(f"{name} was changed")
    return run


def record(folder: Path) -> dict[str, Any]:
    """The content of run.json, the other files unseen.

    Raises:
      Damaged: it was changed, or can't be read.
    """
    try:
        sealed = read_object(folder / "run.json")
        body, digest = sealed["run"], sealed["sha256"]
        if hashlib.sha256(body.encode()).hexdigest() != digest:
            raise Damaged("run.json was changed")
        return dict(parse(body, "run"))
    except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"run.json can't be read: {error}") from error


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
