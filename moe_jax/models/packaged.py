"""Models in PyPI packages: their files are found and checked, their code is never imported."""

import hashlib
import importlib.util
import pathlib

from moe_jax.errors import UserError


def packaged_file(
    package: str, inside: str, *, sha256: str, what: str, install: str
) -> pathlib.Path:
    """A package's file, once its bytes are known to be the official ones.

    Args:
      package: import name of the package, which isn't run.
      inside: the file's path below the package.
      sha256: of the file, in hexadecimal.
      what: the model, for messages, such as "encoder 'all-MiniLM-L6-v2'".
      install: the command that installs the package, for messages.

    Raises:
      UserError: the package is not installed, or its file is missing or altered.
    """
    # find_spec of a top-level package finds it without running it.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{what} is not installed: {install}")
    file = pathlib.Path(spec.submodule_search_locations[0]) / inside
    if not file.is_file():
        raise UserError(f"{file} is missing: {install} --force-reinstall")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise UserError(
            f"{file} was altered (SHA-256 {found[:12]}..., not {sha256[:12]}...): "
            f"{install} --force-reinstall"
        )
    return file
