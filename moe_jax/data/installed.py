"""Documentation of installed Python modules, read from their source; nothing is imported."""

import ast
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from moe_jax.errors import UserError

TOPICS = "pydoc topics"  # the chapters of the language reference that come with Python

_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_SKIPPED_FOLDERS = {"__pycache__", "_testing", "test", "tests"}
# Where the name to install is not the name to import.
_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}


def documents(module: str) -> Iterator[tuple[str, str]]:
    """(name, documentation) of a module and everything public below it, in a fixed order.

    Args:
      module: dotted name of a module of the standard library or of an installed package, or
        `TOPICS`. Nothing of it is executed.

    Raises:
      UserError: it is not installed, or its source cannot be read; says what to install.
    """
    if module == TOPICS:
        yield from _topics()
        return
    for path, name in _files(module):
        try:
            tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as Python source ({error})") from error
        yield from _docstrings(tree, name)


def _topics() -> list[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UserError(_missing("pydoc_data.topics")) from error
    return [(f"topic {name}", topics[name]) for name in sorted(topics)]


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    """Docstrings of a module and of its public classes and functions; private ones are jottings."""
    document = ast.get_docstring(node, clean=False)
    if document:
        yield name, document
    for child in node.body:
        if isinstance(child, _DEFINITIONS) and not child.name.startswith("_"):
            yield from _docstrings(child, f"{name}.{child.name}")


def _files(module: str) -> list[tuple[Path, str]]:
    """Source files of a module and all below it with their module names, sorted."""
    top, *rest = module.split(".")
    home = _home(top)
    if home is not None:
        place = home.joinpath(top, *rest)
        if place.is_dir():
            paths = [
                path
                for path in place.rglob("*.py")
                if not _SKIPPED_FOLDERS.intersection(path.relative_to(place).parts)
                and not path.stem.endswith("_test")
            ]
        else:
            paths = [path for path in [place.with_suffix(".py")] if path.is_file()]
        if paths:
            named = [(path.relative_to(home).with_suffix("").parts, path) for path in paths]
            return [(path, ".".join(parts)) for parts, path in sorted(named)]
    raise UserError(_missing(module))


def _home(top: str) -> Path | None:
    """The folder that holds a top-level package or module; None when it is not installed."""
    if top in sys.stdlib_module_names:
        return Path(sysconfig.get_path("stdlib"))
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a stand-in without a spec under that name
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).parent
    return Path(spec.origin).parent if spec.origin else None


def _missing(module: str) -> str:
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "pydoc_data":
        cure = "which this Python installation lacks; use a complete Python with its sources"
    else:
        package = _DISTRIBUTIONS.get(top, top)
        cure = f"which is not installed; run pip install {package} (or 'moe-jax[rationale]')"
    return (
        f"the default corpus reads the documentation of {module}, {cure}, or give a path to texts"
    )
