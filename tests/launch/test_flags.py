"""Flags from the fields of a dataclass."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from launch import _cli as cli
from launch import _flags
from moe_jax.common import EscapedText, File, FileName, FlagText, Folder, FolderName
from moe_jax.errors import UserError


@dataclasses.dataclass(kw_only=True)
class Inputs:
    """What is read.

    Attributes:
      model: a folder with a model, such as runs/sums/model.
      text: what comes between.
    """

    model: FolderName
    text: EscapedText = "\n"


@dataclasses.dataclass(kw_only=True)
class Everything(Inputs):
    """One field of each type.

    Attributes:
      count: how many, and no more:
        not one.
      share: of all.
      chat: ask as in a chat.
      kind: of the page.
      names: of the conditions.
      weights: of the levels.
      devices: here, or on so many.
      steps: to trace.
      limit: none, or so many.
      folder, output: where to.
    """

    count: int = 16
    share: float = 0.5
    chat: bool = False
    kind: Literal["text", "html"] = "text"
    names: tuple[str, ...] = ("zero", "mean")
    weights: tuple[float, ...] = ()
    devices: Annotated[bool | int, FlagText("DEVICES")] = False
    steps: Annotated[str, FlagText("A:B")] = ""
    limit: int | None = None
    folder: Folder = Path("here")
    output: File | None = None
    derived: int = dataclasses.field(default=3, init=False)

    def validate(self) -> None:
        if self.count == 13:
            raise UserError("count=13: must be another")


def parse(*flags):
    return _flags.parse(["script", "--model=m", *flags], Everything)


def test_defaults_are_the_fields_own():
    assert parse() == Everything(model="m")
    assert isinstance(parse().folder, Path)


@pytest.mark.parametrize(
    "flags, field, value",
    [
        (["--count=7"], "count", 7),
        (["--count", "-7"], "count", -7),
        (["-count=7", "--count=8"], "count", 8),
        (["--share=1e-3"], "share", 0.001),
        (["--share=2"], "share", 2.0),
        (["--chat"], "chat", True),
        (["--chat", "--nochat"], "chat", False),
        (["--chat=TRUE"], "chat", True),
        (["--chat", "true", "--count=1"], "chat", True),
        (["--chat", "--chat", "False"], "chat", False),
        (["--kind=html"], "kind", "html"),
        (["--names=a, b@c=2"], "names", ("a", "b@c=2")),
        (["--names=a"], "names", ("a",)),
        (["--weights=-1,0,1.5"], "weights", (-1.0, 0.0, 1.5)),
        (["--devices"], "devices", True),
        (["--devices=1"], "devices", 1),
        (["--nodevices"], "devices", False),
        (["--steps=a=b"], "steps", "a=b"),
        (["--limit=0"], "limit", 0),
        (["--text=\\ta\\n"], "text", "\ta\n"),
        (["--text="], "text", "\n"),  # as if it weren't there
        (["--limit=", "--count=", "--output=", "--names="], "limit", None),
        (["--output=a.html"], "output", Path("a.html")),
    ],
)
def test_values(flags, field, value):
    given = getattr(parse(*flags), field)
    assert given == value
    assert type(given) is type(value)


def test_the_home_is_expanded_in_paths_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = parse("--model=~/m", "--folder=~/f", "--output", "~/o", "--steps=~/s")
    assert (given.model, given.steps) == ("/home/me/m", "~/s")
    assert (given.folder, given.output) == (Path("/home/me/f"), Path("/home/me/o"))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--count=many"], "--count=many: must be a whole number"),
        (["--count=1.5"], "--count=1.5: must be a whole number"),
        (["--share=wide"], "--share=wide: must be a number"),
        (["--chat=maybe"], "--chat=maybe: must be true or false"),
        (["--nochat=true"], "--nochat=true does not take an argument"),
        (["--kind=xml"], "--kind=xml: must be one of text, html"),
        (["--weights=a,b"], "--weights=a,b: must be numbers with commas between, such as -1,0,1"),
        (["--devices=many"], "--devices=many: must be a whole number"),
        (["--devices", "4"], "'4': not a flag; flags are written --name=value"),
        (["--output=s3://b/x"], "--output=s3://b/x: must be a file or folder of this machine"),
        (["--model=gs://b/x"], "--model=gs://b/x: must be a file or folder of this machine"),
        (["--modle=3"], "--modle: no such flag; did you mean --model?"),
        (["--nochta"], "--nochta: no such flag; did you mean --chat?"),
        (["--derived=4"], "--derived: no such flag"),
        (["--count"], "Missing value for flag --count"),
        (["stray"], "'stray': not a flag; flags are written --name=value"),
        (["--count=13"], "count=13: must be another"),
        (["--model="], "--model=DIR is missing: a folder with a model, such as runs/sums/model"),
        (["--flagfile=nowhere"], "--flagfile: No such file or directory: 'nowhere'"),
        (["--flagfile"], "--flagfile with no argument"),
    ],
)
def test_one_line_for_a_mistake(flags, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse(*flags)


def test_flags_from_files(tmp_path):
    (tmp_path / "more").write_text("// of the second\n--share=0.25\n")
    (tmp_path / "flags").write_text(
        f"# mine\n--count=3\n\n--flagfile={tmp_path / 'more'}\n--chat\n"
    )
    given = parse("--count=2", f"--flagfile={tmp_path / 'flags'}", "--share", "1")
    assert (given.count, given.share, given.chat) == (3, 1.0, True)  # the later one counts
    (tmp_path / "bytes").write_bytes(b"--steps=\xff\n")
    with pytest.raises(UserError, match="--flagfile can't be read"):
        parse(f"--flagfile={tmp_path / 'bytes'}")


@pytest.mark.parametrize("flags", [[], ["--help"], ["-h"], ["--count=x", "--helpfull"]])
def test_help_has_every_flag_with_its_default(flags, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")

    def main(argv):
        _flags.parse(argv, Everything, "\nThe script's text.\n")

    assert cli.run(main, ["script", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "The script's text.",
        "",
        "Flags:",
        "  --model=DIR          a folder with a model, such as runs/sums/model",
    ]
    for line in (
        "  --text=TEXT          what comes between (default \\n)",
        "  --count=N            how many, and no more: not one (default 16)",
        "  --[no]chat           ask as in a chat",
        "  --kind=text|html     of the page (default text)",
        "  --names=TEXT,...     of the conditions (default zero,mean)",
        "  --weights=X,...      of the levels",
        "  --devices[=DEVICES]  here, or on so many",
        "  --steps=A:B          to trace",
        "  --folder=DIR         where to (default here)",
        "  --output=FILE        where to",
    ):
        assert line in lines
    assert "--derived" not in "".join(lines)


def test_a_type_that_no_flag_can_have():
    @dataclasses.dataclass
    class Wrong:
        table: dict[str, Any]

    with pytest.raises(TypeError, match="no flag can be of this type"):
        _flags.parse(["script", "--table=x"], Wrong)


def test_annotated_paths_may_be_texts():
    assert _flags.kind_of(FileName | None).path is str
    assert _flags.kind_of(File).path is Path
