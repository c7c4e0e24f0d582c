"""Files that will be run as code: kept where nobody but the user and root can change them.

The file's hash, which follows its contents, finds damage. It is no help against other users, who
could write it as well: against them there are the owners and modes of the file, of its folder and
of every folder and link on the way there. Checked from the root on, each of them is such that no
other user can change or replace the next.
"""

import contextlib
import errno
import fcntl
import grp
import hashlib
import os
import pwd
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "moe_kernels-"
"""How the names of temporary files and folders begin."""

_STALE = 600  # seconds after which a temporary file belongs to a process that was killed
_LARGEST = 64 << 20  # bytes of a library; 200,000 are usual
_ROOM = 16 << 20  # bytes that compiling needs
_HASH = hashlib.sha256().digest_size


class Untrusted(Exception):
    """What is wrong with a file: "belongs to user 1000"."""


def unfit(folder: Path) -> str | None:
    """Makes the folder unless it is there, for this user alone; why it can't be trusted, or None.

    Args:
      folder: an absolute path.

    Raises:
      OSError: it can't be made or looked at.
    """
    if reason := _changeable(folder):
        return reason
    for part in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
        with contextlib.suppress(FileExistsError):
            part.mkdir(mode=0o700)
    return _changeable(folder)


def read(path: Path) -> bytes | None:
    """What `keep` wrote there; None if there is nothing, or nothing whole.

    Raises:
      Untrusted: another user could have written it.
    """
    try:
        # Without following a link, and without waiting for whoever writes to a pipe.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Untrusted(
            "is a link" if error.errno == errno.ELOOP else f"cannot be read ({error.strerror})"
        ) from error
    if reason := _suspect(os.fstat(handle)):
        os.close(handle)
        raise Untrusted(reason)
    try:
        with open(handle, "rb") as file:
            content = file.read(_LARGEST)
    except OSError:
        return None  # a bad disk
    library, digest = content[:-_HASH], content[-_HASH:]
    return library if library and hashlib.sha256(library).digest() == digest else None


def _suspect(found: os.stat_result) -> str | None:
    if not stat.S_ISREG(found.st_mode):
        return "is no file"
    if found.st_uid not in (os.geteuid(), 0):
        return f"belongs to user {found.st_uid}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be changed by other users"
    return None


def keep(path: Path, library: bytes) -> None:
    """Writes the file, whole or not at all, even if the machine stops.

    Raises:
      OSError: the folder can't be written, or is full.
    """
    _remove_stale(path.parent)
    handle, made = tempfile.mkstemp(prefix=PREFIX, dir=path.parent)
    try:
        with open(handle, "wb") as file:
            os.fchmod(handle, 0o644)
            file.write(library + hashlib.sha256(library).digest())
            file.flush()
            os.fsync(handle)
        os.replace(made, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(made)
        raise


@contextlib.contextmanager
def locked(folder: Path, seconds: float) -> Iterator[None]:
    """Waits, so long at most, until no other process is in here for this folder.

    A file system that has no locks lets all in.
    """
    handle = None
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def temporary(folder: Path | None) -> list[Path]:
    """Folders that can hold a private one: the system's, then this one, if it is not None."""
    system = ["/tmp", "/var/tmp", "/dev/shm"]
    with contextlib.suppress(OSError):  # none that can be written
        system.insert(0, os.path.abspath(tempfile.gettempdir()))
    return list(dict.fromkeys([*map(Path, system), *([folder] if folder else [])]))


@contextlib.contextmanager
def private(parent: Path) -> Iterator[Path]:
    """A new folder that only this user can enter, removed in the end.

    Raises:
      OSError: it can't be made, the parent can be changed by other users, or it is full.
    """
    if reason := _changeable(parent, shared=True):
        raise PermissionError(errno.EPERM, reason)
    _remove_stale(parent)
    if shutil.disk_usage(parent).free < _ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True) as made:
        yield Path(made)


def _remove_stale(folder: Path) -> None:
    """Removes what killed processes of this user left there."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(PREFIX):
                continue
            found = entry.stat(follow_symlinks=False)
            if found.st_uid != os.geteuid() or time.time() - found.st_mtime < _STALE:
                continue
            if stat.S_ISDIR(found.st_mode):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def _changeable(folder: Path, shared: bool = False) -> str | None:
    """Why another user could change what the folder holds, as far as there is one; None if not.

    Args:
      folder: an absolute path.
      shared: whether others may add to it, as to /tmp, as long as what is there stays.
    """
    trusted = {os.geteuid(), 0}
    # Where root has no number, as in a container without it, it is whoever owns the root folder.
    on_the_way = trusted | {os.stat("/").st_uid}
    for path in _way(folder):
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(found.st_mode) and not stat.S_ISLNK(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if found.st_uid not in on_the_way:
            return f"{path} belongs to user {found.st_uid}"
        if _open_to_others(path, found, shared=True):
            return f"{path} can be changed by other users"
    found = os.stat(folder)
    if shared:
        return None
    if found.st_uid not in trusted:
        return f"{folder} belongs to user {found.st_uid}"
    if _open_to_others(folder, found, shared=False):
        return f"{folder} can be changed by other users"
    return None


def _open_to_others(path: Path, found: os.stat_result, shared: bool) -> bool:
    if stat.S_ISLNK(found.st_mode):
        return False  # a link can't be changed, only replaced
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not others or (shared and found.st_mode & stat.S_ISVTX):
        return False
    return others != stat.S_IWGRP or not _of_one_user(path, found.st_gid)


def _of_one_user(path: Path, group: int) -> bool:
    """Whether the group is this user's own, as many systems give one to each user."""
    try:
        user, members = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    own = user.pw_uid and user.pw_gid == group and user.pw_name == members.gr_name
    if not own or set(members.gr_mem) - {user.pw_name}:
        return False
    # The mode's group also stands for the users and groups of an access list.
    return not hasattr(os, "listxattr") or "system.posix_acl_access" not in os.listxattr(path)


def _way(path: Path) -> Iterator[Path]:
    """All folders and links from the root to the path, in order."""
    at, links = Path("/"), 0
    rest = [part for part in reversed(path.parts) if not part.startswith("/")]
    yield at
    while rest:
        part = rest.pop()
        if part == "..":
            at = at.parent
            continue
        at = at / part
        yield at
        if not at.is_symlink():
            continue
        links += 1
        if links > 40:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = Path(os.readlink(at))
        at = Path("/") if target.is_absolute() else at.parent
        rest += [part for part in reversed(target.parts) if not part.startswith("/")]
