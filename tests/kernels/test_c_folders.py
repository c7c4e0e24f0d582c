"""Folders and files that hold code: nobody else may be able to change them."""

import errno
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from moe_kernels.c_cpu import folders

ROOT = os.geteuid() == 0
NOBODY = 65534
needs_root = pytest.mark.skipif(not ROOT, reason="only root can give a file to another user")


def changed_by_others(path: Path) -> str:
    return f"{path} can be changed by other users"


def test_a_folder_is_made_for_the_user_alone(home):
    before = os.umask(0)
    try:
        assert folders.unfit(home / "a" / "b") is None
    finally:
        os.umask(before)
    for path in (home / "a", home / "a" / "b"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


# The group of a user who is not root may be this user's own.
GROUP = pytest.param(0o770, marks=needs_root)


@pytest.mark.parametrize("mode", [0o777, 0o1777, GROUP, 0o702])
def test_a_folder_that_others_may_write_is_refused(mode, home):
    folder = home / "folder"
    folder.mkdir()
    folder.chmod(mode)
    assert folders.unfit(folder) == changed_by_others(folder)


@pytest.mark.parametrize("mode, sticky", [(0o777, False), (0o702, False), (0o1777, True)])
@pytest.mark.parametrize("made", [False, True])
def test_a_folder_that_others_may_replace_is_refused(mode, sticky, made, home):
    parent = home / "parent"
    folder = parent / "between" / "folder"
    folder.mkdir(parents=True) if made else parent.mkdir()
    parent.chmod(mode)
    assert folders.unfit(folder) == (None if sticky else changed_by_others(parent))
    assert made or sticky or not list(parent.iterdir())


@needs_root
@pytest.mark.parametrize("owned", ["folder", "folder/inner"])
def test_a_folder_of_another_user_is_refused(owned, home):
    inner = home / "folder" / "inner"
    inner.mkdir(parents=True)
    os.chown(home / owned, NOBODY, NOBODY)
    assert folders.unfit(inner) == f"{home / owned} belongs to user {NOBODY}"


@needs_root
def test_a_link_of_another_user_is_refused_and_an_own_one_is_not(home):
    (home / "folder").mkdir(mode=0o700)
    shared = home / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    link = shared / "link"
    link.symlink_to(home / "folder")
    assert folders.unfit(link) is None
    os.lchown(link, NOBODY, NOBODY)
    assert folders.unfit(link) == f"{link} belongs to user {NOBODY}"
    assert folders.unfit(link / "inner") == f"{link} belongs to user {NOBODY}"


def test_links_are_followed_to_where_others_may_write(home):
    shared = home / "shared"
    shared.mkdir()
    (home / "relative").symlink_to("x/../shared/inner")
    (home / "x").mkdir()
    (home / "absolute").symlink_to(shared)
    shared.chmod(0o777)
    assert folders.unfit(home / "relative") == changed_by_others(shared)
    assert folders.unfit(home / "absolute") == changed_by_others(shared)
    assert folders.unfit(home / "x" / ".." / "shared" / "y") == changed_by_others(shared)


def test_what_cannot_be_a_folder_is_an_error(home):
    (home / "file").write_text("")
    (home / "loop").symlink_to("loop")
    for path, code in {
        "file": errno.ENOTDIR,
        "file/folder": errno.ENOTDIR,
        "loop/folder": errno.ELOOP,
        "x" * 300: errno.ENAMETOOLONG,
    }.items():
        with pytest.raises(OSError, match=os.strerror(code)):
            folders.unfit(home / path)


@needs_root
class TestTwoUsers:
    def test_what_root_keeps_others_use_and_cannot_replace(self, home):
        folders.keep(home / "file", b"library")
        os.seteuid(NOBODY)
        try:
            assert folders.unfit(home) is None
            assert folders.read(home / "file") == b"library"
            with pytest.raises(PermissionError):
                folders.keep(home / "file", b"other")
        finally:
            os.seteuid(0)

    def test_what_another_user_keeps_root_does_not_use(self, home):
        (home / "his").mkdir()
        os.chown(home / "his", NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            folders.keep(home / "his" / "file", b"library")
        finally:
            os.seteuid(0)
        assert folders.unfit(home / "his") == f"{home / 'his'} belongs to user {NOBODY}"
        with pytest.raises(folders.Untrusted, match=f"^belongs to user {NOBODY}$"):
            folders.read(home / "his" / "file")

    def test_a_group_of_its_own_is_the_user(self, home, monkeypatch):
        folder = home / "folder"
        folder.mkdir()
        os.chown(folder, NOBODY, 4321)
        folder.chmod(0o770)
        own = os.stat(folder).st_gid
        entry = folders.pwd.struct_passwd(("name", "x", NOBODY, own, "", "/", "/bin/sh"))
        monkeypatch.setattr(folders.pwd, "getpwuid", lambda uid: entry)
        for name, members, fits in [
            ("name", [], True),
            ("name", ["name"], True),
            ("staff", [], False),
            ("name", ["name", "another"], False),
        ]:
            entry_of_group = folders.grp.struct_group((name, "x", own, members))
            monkeypatch.setattr(folders.grp, "getgrgid", lambda gid, e=entry_of_group: e)
            os.seteuid(NOBODY)
            try:
                reason = folders.unfit(folder)
            finally:
                os.seteuid(0)
            assert reason == (None if fits else changed_by_others(folder))

    def test_a_folder_without_rights_is_an_error(self, home):
        (home / "closed").mkdir(mode=0o700)
        os.seteuid(NOBODY)
        try:
            with pytest.raises(PermissionError):
                folders.unfit(home / "closed" / "folder")
            with pytest.raises(PermissionError):
                folders.unfit(home / "new")
        finally:
            os.seteuid(0)


def test_what_is_kept_is_read_again(home):
    folders.keep(home / "file", b"library")
    assert folders.read(home / "file") == b"library"
    folders.keep(home / "file", b"another")
    assert folders.read(home / "file") == b"another"
    assert [path.name for path in home.iterdir()] == ["file"]
    assert stat.S_IMODE((home / "file").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: b"",
        lambda c: c[: len(c) // 2],
        lambda c: c[:-1],
        lambda c: c + b"\0",
        lambda c: b"\0" * len(c),
        lambda c: c[:3] + bytes([c[3] ^ 1]) + c[4:],
        lambda c: c[-32:],
        lambda c: folders.hashlib.sha256(b"").digest(),
    ],
)
def test_what_is_damaged_is_not_read(damage, home):
    path = home / "file"
    folders.keep(path, b"library" * 1000)
    path.write_bytes(damage(path.read_bytes()))
    assert folders.read(path) is None


def test_a_huge_file_is_not_read_to_its_end(home, monkeypatch):
    monkeypatch.setattr(folders, "_LARGEST", 100)
    folders.keep(home / "file", b"x" * 1000)
    assert folders.read(home / "file") is None


def test_a_missing_file_is_nothing(home):
    assert folders.read(home / "file") is None


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "others"])
def test_what_is_no_file_of_the_users_is_refused(kind, home):
    path = home / "file"
    folders.keep(home / "good", b"library")
    if kind == "link":
        path.symlink_to(home / "good")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        (home / "good").rename(path)
        path.chmod(0o646)
    what = {"link": "is a link", "others": "can be changed by other users"}.get(kind, "is no file")
    with pytest.raises(folders.Untrusted, match=f"^{what}$"):
        folders.read(path)


def test_a_failed_write_leaves_nothing(home):
    (home / "file").mkdir()
    (home / "file" / "inner").write_text("")
    with pytest.raises(OSError, match=r"directory|not empty"):
        folders.keep(home / "file", b"library")
    assert [path.name for path in home.iterdir()] == ["file"]


def test_what_killed_processes_left_is_removed(home):
    old, fresh, foreign = home / f"{folders.PREFIX}old", home / f"{folders.PREFIX}new", home / "tmp"
    for folder in (old, fresh, foreign):
        folder.mkdir()
        (folder / "kernels.s").write_text("")
    part = home / f"{folders.PREFIX}part"
    part.write_text("")
    hour_ago = time.time() - 3600
    for path in (old, foreign, part):
        os.utime(path, (hour_ago, hour_ago))
    with folders.private(home) as made:
        assert sorted(home.iterdir()) == sorted([made, fresh, foreign])
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert sorted(home.iterdir()) == sorted([fresh, foreign])


def test_no_private_folder_where_others_could_replace_it(home):
    home.chmod(0o777)
    with pytest.raises(PermissionError, match="can be changed by other users"):
        folders.private(home).__enter__()
    home.chmod(0o1777)
    with folders.private(home) as made:
        assert made.parent == home


def test_no_private_folder_where_there_is_no_room(home, monkeypatch):
    monkeypatch.setattr(folders, "_ROOM", 1 << 60)
    with pytest.raises(OSError, match="No space left on device"):
        folders.private(home).__enter__()


def test_temporary_folders_where_the_system_names_none(monkeypatch, home):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(folders.tempfile, "gettempdir", none)
    assert folders.temporary(home) == [Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), home]


def test_a_lock_lets_one_in_at_a_time_and_is_not_waited_for_too_long(home):
    inside, at_once = [], []

    def enter():
        with folders.locked(home, seconds=60.0):
            inside.append(1)
            at_once.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at_once == [1, 1, 1, 1]
    with folders.locked(home, seconds=60.0), folders.locked(home, seconds=0.1):
        pass
    with folders.locked(home / "missing", seconds=60.0):
        pass
