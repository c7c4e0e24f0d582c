"""The folder of a run: its lock and its config.json."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_jax.common.files import file_errors, read_object, write_new
from moe_jax.common.schema import Json, first_difference, from_json, to_json
from moe_jax.errors import UserError

MAY_DIFFER = ("train.mesh",)
"""Fields that an interrupted run may go on with other values of."""


def claim(workdir: Path, config: Any) -> bool:
    """Make `workdir` the folder of this config: write config.json, or check that it is the same.

    Returns:
      Whether it is a new run, and config.json was written now.

    Raises:
      UserError: the folder holds another run (names the first field that differs), or it can't
        be made.
    """
    text = json.dumps(to_json(config), indent=2) + "\n"
    with file_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    new = write_new(workdir / "config.json", text)
    check_same(workdir, load(workdir), config)
    return new


@contextlib.contextmanager
def claimed(workdir: Path, config: Any) -> Iterator[None]:
    """`claim`; and if a new run fails with a UserError before it wrote anything, take it back.

    So that a corpus that can't be read does not leave a folder that refuses the corrected command.
    """
    existed = workdir.exists()
    new = claim(workdir, config)
    try:
        yield
    except UserError:
        ours = {"config.json", ".lock"}
        if new and {path.name for path in workdir.iterdir()} <= ours:
            for name in ours:
                (workdir / name).unlink(missing_ok=True)
            if not existed:
                workdir.rmdir()
        raise


def check_same(workdir: Path, theirs: Json, config: Any, path: str = "") -> None:
    """A UserError that names the first field in which the run in `workdir` differs from this.

    A run that was begun before the config had a field has that field's default.
    """
    # Fields that no config has now stay, and differ.
    with contextlib.suppress(UserError):
        theirs = to_json(from_json(type(config), theirs))
    difference = first_difference(theirs, to_json(config), path, MAY_DIFFER)
    if difference is not None:
        name, their, our = difference
        raise UserError(
            f"workdir {workdir} holds a run with {name}={their}, not {our}: "
            "give the same value, or another folder"
        )


def load(workdir: Path) -> dict[str, Json]:
    """The fields of config.json.

    Raises:
      UserError: there is none, or it is not a JSON object.
    """
    missing = f"workdir {workdir}: no config.json, so no run was started here"
    return read_object(workdir / "config.json", missing=missing)


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Hold the folder against a second training run; a killed run holds nothing.

    Raises:
      UserError: another process trains here now.
    """
    with file_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        handle = (workdir / ".lock").open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"workdir {workdir}: another process is training here; wait for it or stop it"
            ) from None
        yield
