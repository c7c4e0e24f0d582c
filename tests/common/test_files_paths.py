"""Paths as users give them: homes, addresses, and what can't be one."""

import os
from pathlib import Path

import pytest

from moe_jax.common import local_path
from moe_jax.common.files import local
from moe_jax.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_home_is_expanded_once_and_for_all(home):
    for given in ("~", "~/a/b", Path("~/a/b")):
        found = local_path(given, "--x")
        assert found == home / Path(given).relative_to("~")
        assert local_path(found, "--x") == found
    user = os.environ.get("USER") or "root"
    assert local(f"~{user}/a", "--x") == os.path.expanduser(f"~{user}/a")


@pytest.mark.parametrize(
    "given", ["a", "./a", "a/~", "/a:/b", "C:/x", "a b", "name-1.0", "", "a:b"]
)
def test_other_paths_stay_as_they_are(given):
    assert local(given, "--x") == given


@pytest.mark.parametrize("given", ["./~", "./~nobody-here/a", "./gs:/a", ".//s3://b"])
def test_what_is_here_can_be_named_so(given, tmp_path):
    """As a Path these have no "./" any more: they must not be taken for something else later."""
    found = local_path(given, "--x")
    assert found == Path(os.path.abspath(tmp_path / given))
    assert local_path(found, "--x") == found


@pytest.mark.parametrize(
    "given",
    [
        "gs://b/run",
        "s3://b",
        "GS://b",
        "file:///a",
        "hdfs:/a",
        "abfss://c@a/b",
        " gs://b",
        "a+b://c",
    ],
)
def test_an_address_is_refused(given, tmp_path):
    for path in (given, Path(given)):
        with pytest.raises(UserError, match=r"^--x=.*: must be a file or folder of this machine"):
            local(path, "--x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("~nobody-here/a", "~nobody-here is no home here; write ./~nobody-here/a if"),
        ("a" * 5000, "can't be used: File name too long"),
        ("a\0b", "can't be used: no path can hold these characters"),
        ("loop/a", "can't be used: Too many levels of symbolic links"),
    ],
)
def test_what_can_be_no_path_is_one_line(given, says, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError) as caught:
        local(given, "--x")
    assert str(caught.value).startswith("--x=")
    assert says in str(caught.value)
