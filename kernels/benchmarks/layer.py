"""Times one mixture-of-experts layer against a dense one of the same activated FLOPs, and rivals.

  python kernels/benchmarks/layer.py --shapes=cpu --repeats=7 --json_out=layer.json
  python kernels/benchmarks/layer.py --shapes=cpu --repeats=7 --keep_heap    # as in training on CPU
  python kernels/benchmarks/layer.py --shapes=cpu --peers=all --plot=layer.png
  python kernels/benchmarks/layer.py --shapes="olmoe;2048,512,512,32,4" --load=zipf
  python kernels/benchmarks/layer.py --shapes=olmoe --load=olmoe --load_file=expert_counts.json

"dense" sends tokens * k rows through one gated feed-forward block: plain matrix products. Before
timing, the values and all gradients of the compiled functions, ours and the rivals', are compared
with the reference backend on a sample of the tokens. All are timed in turns; figures are medians.

Columns: ratio and x_NAME are moe_ffn's time over the dense block's and over rival NAME's, so below
1 moe_ffn is faster; cpu is the ratio of processor times, which a busy machine disturbs less (on a
GPU it says what the host does). GFLOP/s counts the three products only. floor_ms is what this
machine's measured ceilings allow (floor.py), floor its share of moe_ffn's time, temp_MB what the
compiler sets aside besides arguments and results. "-": not there; the foot of the table says why.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import checks
import floor
import interleave
import jax
import loads
import moe_kernels
import options
import peers
import rows
import tables
from absl import app, flags

PEERS = flags.DEFINE_string("peers", "dense", f"rivals: {', '.join(peers.BUILDERS)}; or all")
FORCE = flags.DEFINE_bool("force", False, "run rivals even where their cost is absurd")
KEEP_HEAP = flags.DEFINE_bool("keep_heap", False, "begin with moe_kernels.keep_heap()")
PLOT = options.define_path("plot", None, "PNG file for a roofline and speed-up bars")
flags.adopt_module_key_flags(options)


def columns(others: tuple[str, ...]) -> list[str]:
    """Names of the table's columns, with the rivals besides dense."""
    rate = "GFLOP/s" if jax.default_backend() == "cpu" else "TFLOP/s"
    first = ["T,d,f,E,k", "what", "dense_ms", "moe_ffn_ms", rate, "ratio", "cpu"]
    return [*first, *(f"x_{name}" for name in others), "floor_ms", "floor", "temp_MB"]


def cells(row: dict[str, Any], others: tuple[str, ...]) -> list[str]:
    """A row of figures as text, in the order of `columns`."""
    rate = row["flops_per_s"] / (1e9 if jax.default_backend() == "cpu" else 1e12)
    shape = loads.Shape(*(row[name] for name in loads.Shape._fields))
    found = row["peers"]
    return [
        shape.text,
        row["what"],
        f"{row['dense_ms']:.2f}",
        f"{row['moe_ffn_ms']:.2f}",
        f"{rate:.1f}",
        f"{row['ratio']:.2f}",
        f"{row['cpu_ratio']:.2f}",
        *(f"{found[name]['ratio']:.2f}" if name in found else "-" for name in others),
        f"{row['floor_ms']:.2f}",
        f"{100 * row['floor_share']:.0f}%",
        "-" if row["temp_bytes"] is None else f"{row['temp_bytes'] / 2**20:.1f}",
    ]


class Report:
    """The table, the reasons at its foot, and the JSON file, which grows with every shape."""

    def __init__(
        self, settings: rows.Settings, ceilings: floor.Ceilings, json_out: str | None
    ) -> None:
        self.others = settings.peers[1:]
        self.json_out = json_out
        self.found: dict[str, Any] = {
            "machine": interleave.machine(),
            "settings": {**settings._asdict(), "load": settings.load._asdict()},
            "ceilings": ceilings._asdict(),
            "figures": [],
            "missing": [],
            "notes": [],
        }
        print(" ".join(f"{name}={value}" for name, value in self.found["machine"].items()))
        print(
            f"measured: product {ceilings.flops / 1e9:.1f} GFLOP/s, memory"
            f" {ceilings.bandwidth / 1e9:.1f} GB/s; {settings.dtype}, {settings.load.kind} load"
        )
        self.table = tables.Table(columns(self.others), {"T,d,f,E,k": 22, "what": 16})
        self.write()

    def add(self, shape: loads.Shape, found: rows.Found) -> None:
        """The rows of one shape."""
        for row in found.rows:
            self.found["figures"].append(row)
            self.table.add(cells(row, self.others))
        for name, reason in found.reasons.items():
            self.found["missing"].append({"shape": shape.text, "peer": name, "reason": reason})
        self.write()

    def write(self) -> None:
        """Writes the JSON file, if there is to be one."""
        if self.json_out:
            # Whole or not at all, whenever the run is cut.
            part = Path(f"{self.json_out}.part")
            part.write_text(json.dumps(self.found, indent=1))
            part.replace(self.json_out)

    def close(self) -> None:
        """The end of the table, and its foot."""
        self.table.close()
        for one in self.found["missing"]:
            print(f"not there: {one['peer']} at {one['shape']}: {one['reason']}")
        if any(row["first_touch_ms"] is not None for row in self.found["figures"]):
            ms = [
                f"{r['first_touch_ms']:.1f}" for r in self.found["figures"] if r["first_touch_ms"]
            ]
            print(f"first touch of the gradients' memory alone, shape by shape: {', '.join(ms)} ms")
        for note in self.found["notes"]:
            print(note)
        self.write()


def settings(load: loads.Load) -> rows.Settings:
    """What the flags say; a mistake in them ends the program with one line and exit code 2."""
    try:
        chosen = peers.names(PEERS.value)
        for path in (options.JSON_OUT.value, PLOT.value):
            if path and not Path(path).absolute().parent.is_dir():
                raise ValueError(f"no folder to write {path!r} into")
        if PLOT.value and importlib.util.find_spec("matplotlib") is None:
            raise ValueError("--plot needs the package matplotlib")
    except ValueError as error:
        tables.fail(error)
    return rows.Settings(
        chosen,
        load,
        options.DTYPE.value,
        options.BACKEND.value,
        options.REPEATS.value,
        options.SEED.value,
        FORCE.value,
    )


def main(argv: list[str]) -> None:
    """Prints the table, and writes what --json_out and --plot ask for."""
    tables.no_arguments(argv)
    if KEEP_HEAP.value and not moe_kernels.keep_heap():
        tables.fail(ValueError("--keep_heap needs glibc, which this system doesn't have"))
    shapes, load = options.shapes_and_load()
    chosen = settings(load)
    with tables.progress("measuring the machine's ceilings"):
        fresh = max(floor.gradient_bytes(shape, chosen.dtype) for shape in shapes)
        ceilings = floor.measure(chosen.dtype, min(fresh, 2**30))
    report = Report(chosen, ceilings, options.JSON_OUT.value)
    try:
        for shape in shapes:
            report.add(shape, rows.figures(shape, chosen, ceilings))
    except checks.Disagreement as error:
        tables.fail(error)
    report.close()
    if PLOT.value:
        import plots

        plots.draw(report.found, PLOT.value)


if __name__ == "__main__":
    app.run(main)
