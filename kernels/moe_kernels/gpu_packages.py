"""Whether the packages that the Triton kernels need are here, fit each other, and load."""

import functools
import importlib
import importlib.metadata
import importlib.util
import re

import jax

FITTING: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = {
    "jax-triton": ((0, 4, 1), (0, 5)),
    "triton": ((3, 6), (3, 10)),
    "jax": ((0, 11), None),
}
"""Package -> its first version that works, and the first not known to; as in the extra gpu."""

UNKNOWN = "of unknown version"

INSTALL = 'install it with: pip install "moe-jax-kernels[gpu]" (Linux, Python 3.12 or later)'


@functools.cache
def missing() -> str | None:
    """What stands in the way of the packages, as a sentence; None if nothing does.

    Nothing is imported that does not fit.
    """
    for module in ("triton", "jax_triton"):
        if not installed(module):
            return f"the package {module} is missing; {INSTALL}"
    found = {package: version(package) for package in FITTING}
    names = ", ".join(f"{package} {text}" for package, text in found.items())
    if not all(fits(package, text) for package, text in found.items()):
        wanted = " with ".join(f"{package}{_range(*FITTING[package])}" for package in FITTING)
        return f"the packages {names} do not fit; needed is {wanted}; {INSTALL}"
    try:
        importlib.import_module("moe_kernels.triton_gpu.launch").load()
    except Exception as error:  # of a broken package, whatever it is
        reason = (str(error).splitlines() or [""])[0]
        return f"the packages {names} cannot be imported: {type(error).__name__}: {reason}"
    return None


@functools.cache
def installed(module: str) -> bool:
    """Whether there is such a module; a folder that only has its name is none."""
    try:
        found = importlib.util.find_spec(module)
    except ValueError:  # something else was put in its place
        return False
    return found is not None and found.origin is not None


def version(package: str) -> str:
    """What pip noted of a package, or of the one that brings a module of that name."""
    if package == "jax":
        return jax.__version__
    try:
        return _noted(package) or UNKNOWN
    except Exception:  # of notes that are damaged, in one way or another
        return UNKNOWN


def _noted(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # Some builds of Triton have names of their own.
        brought_by = importlib.metadata.packages_distributions()
        return importlib.metadata.version(brought_by[package.replace("-", "_")][0])


def fits(package: str, text: str) -> bool:
    """Whether the kernels are known to work with that version."""
    numbers = re.match(r"\d+(\.\d+)*", text)
    if numbers is None:
        return False
    least, above = FITTING[package]
    given = tuple(map(int, numbers[0].split(".")))
    return given >= least and (above is None or given < above)


def _range(least: tuple[int, ...], above: tuple[int, ...] | None) -> str:
    first = ">=" + ".".join(map(str, least))
    return first if above is None else first + ",<" + ".".join(map(str, above))
