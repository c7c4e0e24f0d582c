"""What holds for every launch script: its size, what its help loads, what its flags say."""

import ast
import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from launch import _flags
from moe_jax.common import FlagText, field_help

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(p.stem for p in (ROOT / "launch").glob("*.py") if not p.stem.startswith("_"))


def code_lines(path):
    """How many lines hold code: no docstring, no comment, not blank."""
    text = path.read_text()
    lines = {n for n, line in enumerate(text.splitlines(), 1) if line.strip()}
    lines -= {n for n in lines if text.splitlines()[n - 1].lstrip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
            node
        ):
            lines -= set(range(body[0].lineno, body[0].end_lineno + 1))
    return len(lines)


def test_code_lines(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        '"""Doc.\n\nMore."""\n\n# why\nx = """two\n  lines"""\n\n\ndef f():\n    "doc"\n    return 1  # so\n'
    )
    assert code_lines(path) == 4


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_has_at_most_60_lines_of_code(name):
    assert code_lines(ROOT / "launch" / f"{name}.py") <= 60


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_is_explained(name):
    script = importlib.import_module(f"launch.{name}")
    kinds = [kind for kind in vars(script).values() if dataclasses.is_dataclass(kind)]
    (kind,) = [kind for kind in kinds if kind is not FlagText]
    assert set(field_help(kind)) == {field.name for field in dataclasses.fields(kind) if field.init}
    for flag, text in _flags.flag_lines(kind):
        assert len(flag) < 30
        assert text


def test_help_loads_neither_jax_nor_flax():
    """Every script in one process: so help is there at once."""
    program = (
        "import sys, importlib\n"
        "from launch import _cli\n"
        f"for name in {SCRIPTS!r}:\n"
        "    script = importlib.import_module('launch.' + name)\n"
        "    assert _cli.run(script.main, [name, '--help'], lambda: 1 / 0) == 0\n"
        "slow = {'jax', 'flax', 'scipy', 'orbax', 'ml_collections', 'rich'}\n"
        "print(sorted(slow & {name.split('.')[0] for name in sys.modules}))\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
