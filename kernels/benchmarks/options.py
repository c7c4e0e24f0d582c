"""Flags that several benchmarks share."""

import os
import re

import loads
import moe_kernels
import tables
from absl import flags


class _PathParser(flags.ArgumentParser):
    """A file or folder of this machine, "~" being the user's home."""

    def parse(self, argument: str) -> str:
        if re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]+:/", argument):
            raise ValueError("must be a file or folder of this machine, not an address")
        return os.path.expanduser(argument)


def define_path(name: str, default: str | None, text: str) -> flags.FlagHolder[str | None]:
    """A flag that is a path."""
    return flags.DEFINE(_PathParser(), name, default, text)


SHAPES = flags.DEFINE_string(
    "shapes", "cpu", f"sets ({', '.join(loads.SETS)}), joined by commas, or T,d,f,E,k;T,d,f,E,k;..."
)
LOAD = flags.DEFINE_string("load", "dirichlet", f"popularity of experts: {', '.join(loads.KINDS)}")
LOAD_FILE = define_path("load_file", None, "JSON of counts per expert, for --load=olmoe")
LOAD_LAYER = flags.DEFINE_string("load_layer", "c4:0", "which text and layer of that file")
REPEATS = flags.DEFINE_integer("repeats", 7, "timed rounds; medians are reported", lower_bound=1)
BACKEND = flags.DEFINE_string("backend", None, "moe_ffn's backend; None picks by platform")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16", "float16"], "of x and weights"
)
SEED = flags.DEFINE_integer("seed", 0, "seed of the data")
JSON_OUT = define_path("json_out", None, "file to write all figures to")


def load() -> loads.Load:
    """The load that the flags name.

    Raises:
      ValueError: it is unknown, or its file is missing or holds no counts.
    """
    chosen = loads.Load(LOAD.value, LOAD_FILE.value, LOAD_LAYER.value)
    if chosen.kind not in loads.KINDS:
        raise ValueError(f"load {chosen.kind!r} is none of {', '.join(loads.KINDS)}")
    if chosen.kind == "olmoe":
        loads.counts_of(chosen)
    elif chosen.file is not None:
        raise ValueError(f"load {chosen.kind!r} reads no file; --load_file is for olmoe")
    return chosen


def shapes_and_load() -> tuple[tuple[loads.Shape, ...], loads.Load]:
    """What the flags name; a mistake in them ends the program with one line and exit code 2."""
    try:
        moe_kernels.resolve_backend(BACKEND.value)
        return loads.parse(SHAPES.value), load()
    except ValueError as error:
        tables.fail(error)
        raise
