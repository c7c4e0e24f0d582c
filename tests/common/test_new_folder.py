"""A folder is there whole or not at all, and nothing else is left beside it."""

import os

import pytest

from moe_jax.common.files import new_folder
from moe_jax.errors import UserError


def fill(target, text="new", **how):
    with new_folder(target, **how) as part:
        assert part.parent == target.parent
        assert part.name.startswith(".")
        (part / "a").write_text(text)
        (part / "sub").mkdir()


def names(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("there", [False, True])
def test_a_new_or_an_empty_folder_is_filled(tmp_path, there):
    target = tmp_path / "x" / "y"
    if there:
        target.mkdir(parents=True)
    fill(target)
    assert names(target) == ["a", "sub"]
    assert names(target.parent) == ["y"]


def test_others_may_read_it_as_far_as_the_user_lets_them(tmp_path):
    mask = os.umask(0o027)
    try:
        fill(tmp_path / "y")
    finally:
        os.umask(mask)
    assert (tmp_path / "y").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_is_left_alone(tmp_path, replace):
    (tmp_path / "y").write_text("mine")
    with pytest.raises(UserError, match="y exists already; name a new or an empty folder"):
        fill(tmp_path / "y", replace=replace)
    assert names(tmp_path) == ["y"]
    assert (tmp_path / "y").read_text() == "mine"


def test_a_full_folder_is_left_alone_unless_it_is_to_be_replaced(tmp_path):
    target = tmp_path / "y"
    fill(target, "old")
    (target / "b").touch()
    with pytest.raises(UserError, match="exists already"):
        fill(target)
    assert names(target) == ["a", "b", "sub"]
    fill(target, replace=True)
    assert names(target) == ["a", "sub"]
    assert (target / "a").read_text() == "new"
    assert names(tmp_path) == ["y"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("there", [False, True])
def test_an_interruption_leaves_what_was_there(tmp_path, error, there):
    target = tmp_path / "y"
    if there:
        fill(target, "old")

    def fails():
        with new_folder(target, replace=True) as part:
            (part / "a").write_text("new")
            raise error

    with pytest.raises(error):
        fails()
    assert names(tmp_path) == (["y"] if there else [])
    assert not there or (target / "a").read_text() == "old"


def test_what_a_kill_left_is_cleared_away(tmp_path):
    (tmp_path / ".y.part").mkdir()
    (tmp_path / ".y.part" / "half").touch()
    fill(tmp_path / "y")
    assert names(tmp_path) == ["y"]
    assert names(tmp_path / "y") == ["a", "sub"]


def test_a_kill_between_the_two_names_loses_nothing(tmp_path):
    """The old folder is aside and the new one has not its name yet."""
    fill(tmp_path / ".y.old", "old")
    with pytest.raises(ValueError, match="no"), new_folder(tmp_path / "y", replace=True):
        raise ValueError("no")
    assert names(tmp_path) == ["y"]
    assert (tmp_path / "y" / "a").read_text() == "old"


def test_a_name_that_cannot_be_given_keeps_the_old_folder(tmp_path):
    fill(tmp_path / "y", "old")
    message = "y: can't be written: No such file"
    with pytest.raises(UserError, match=message), new_folder(tmp_path / "y", replace=True) as part:
        part.rmdir()
    assert names(tmp_path) == ["y"]
    assert (tmp_path / "y" / "a").read_text() == "old"


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be written"):
        fill(tmp_path / "file" / "y")
    with (
        pytest.raises(UserError, match="y: can't be written: "),
        new_folder(tmp_path / "y") as part,
    ):
        (part / "a" / "b").write_text("no folder a")
    assert names(tmp_path) == ["file"]
