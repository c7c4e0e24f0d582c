"""Paths that users give, in flags, configs and calls: files and folders of this machine."""

import os
import re
from pathlib import Path

from moe_jax.errors import UserError

# Path makes "gs:/bucket" of "gs://bucket"; one letter would be a drive.
_ADDRESS = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(path: str | os.PathLike[str], name: str) -> Path:
    """`local` as a Path."""
    return Path(local(path, name))


def local(path: str | os.PathLike[str], name: str) -> str:
    """The path with "~" as the user's home (shells don't expand it after "--flag=").

    Args:
      path: what the user gave; there need not be such a file. To give it again changes nothing.
      name: of the flag or field, for errors.

    Raises:
      UserError: it is the address of a file elsewhere (gs://, s3://, file://, ...), begins with a
        home that nobody has, or can't be a path here (too long, a loop of links).
    """
    text = os.fspath(path)
    if _ADDRESS.match(text):
        raise UserError(
            f"{name}={text}: must be a file or folder of this machine, or mounted on it "
            "(a bucket can be, with gcsfuse or s3fs), not an address"
        )
    found = os.path.expanduser(text)
    if found.startswith("~"):
        home = found.split("/", 1)[0]
        raise UserError(
            f"{name}={text}: {home} is no home here; write ./{text} if that is its name"
        )
    try:
        os.stat(found)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(f"{name}={text}: can't be used: {error.strerror or error}") from None
    except ValueError:
        raise UserError(
            f"{name}={text!r}: can't be used: no path can hold these characters"
        ) from None
    # Path drops "./", without which these would be a home or an address.
    plain = os.path.normpath(found)
    return os.path.abspath(found) if plain.startswith("~") or _ADDRESS.match(plain) else found
