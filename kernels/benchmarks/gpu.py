"""Everything a GPU machine is asked for, in one command and a fixed time.

  pip download --no-deps -d .whl jax-triton==0.4.1        # if the GPU's machine has no network
  python kernels/benchmarks/gpu.py --minutes=8 --json_out=gpu.json
  python kernels/benchmarks/gpu.py --tests=false --peers=dense,ragged_dot --plot=gpu.png

It needs JAX with CUDA, Triton, NumPy, absl-py, jaxtyping, and jax_triton, installed or as a wheel
in the folder .whl; this package need not be installed. Where the kernels would not run by the
backend triton_gpu nothing is timed.

First tests/kernels/test_triton_device.py runs, if it is there (it needs pytest; with pytest-xdist
eight at a time), for at most --test_minutes. Then layer.py's table is made for twelve published
shapes (or those of --shapes), bfloat16, forward and forward+backward, most telling shapes first. No
shape is begun once the time that is left is less than the last one took; those left out are named
at the foot. A shape in which something is wrong or does not fit is named with the reason, and the
next one follows. The exit code is 1 if tests failed or did not finish, values were wrong, or
nothing could be timed.
"""

import gc
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import carried  # isort: split

import checks
import floor
import layer
import loads
import options
import rows
import tables
from absl import app, flags

MINUTES = flags.DEFINE_float("minutes", 8.0, "time for everything", lower_bound=0.1)
TEST_MINUTES = flags.DEFINE_float("test_minutes", 3.0, "most time for the tests", lower_bound=0.1)
TESTS = flags.DEFINE_bool("tests", True, "run the kernels' tests on the GPU first")

flags.adopt_module_key_flags(layer)
FLAGS = flags.FLAGS
FLAGS.set_default("shapes", "30B,7B,120B,1.4B")
FLAGS.set_default("dtype", "bfloat16")
FLAGS.set_default("repeats", 5)

TEST_FILE = Path(__file__).parents[2] / "tests" / "kernels" / "test_triton_device.py"
# The middle of each model size first, then the finest experts, then the coarsest.
ORDER = tuple(loads.SETS[name][i] for i in (1, 0, 2) for name in ("30B", "7B", "120B", "1.4B"))


def run_tests(seconds: float) -> tuple[str, bool]:
    """A sentence on how the tests went, and whether all of them passed."""
    if not TEST_FILE.is_file():
        return f"tests: not run, {TEST_FILE.name} is not there", True
    # This process holds most of the GPU's memory already.
    env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    env["PYTHONPATH"] = os.pathsep.join([*carried.PATHS, *filter(None, [env.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            test_command(),
            cwd=TEST_FILE.parents[2],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode(errors="replace")
        print("\n".join(output.splitlines()[-10:]), file=sys.stderr)
        return f"tests: stopped after {seconds:.0f} s, not finished", False
    lines = done.stdout.strip().splitlines() or ["no output"]
    if done.returncode:
        print("\n".join(lines[-40:]), file=sys.stderr)
    return f"tests: exit code {done.returncode}: {lines[-1]}", done.returncode == 0


def test_command() -> list[str]:
    """How to run the tests with nothing but pytest: no other folder's settings, no plugins."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(TEST_FILE)]
    words += [f"--confcutdir={TEST_FILE.parent}", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    # Without the import hook of jaxtyping, which wraps the kernels' source; and what other packages
    # of that machine warn of is not the kernels' fault.
    words += ["-o", "addopts=--strict-markers --import-mode=importlib"]
    words += ["-o", "filterwarnings=default"]
    return words + (["-n", "8"] if importlib.util.find_spec("xdist") else [])


def table(
    shapes: tuple[loads.Shape, ...], end: float, settings: rows.Settings
) -> tuple[layer.Report, bool]:
    """Times shapes until `end` (monotonic seconds); the report, and whether all were right."""
    with tables.progress("measuring the machine's ceilings"):
        ceilings = floor.measure(settings.dtype, 0)
    report = layer.Report(settings, ceilings, options.JSON_OUT.value)
    right, last, left_out = True, 0.0, []
    for shape in shapes:
        start = time.monotonic()
        if start + last > end:
            left_out.append(shape.text)
            continue
        try:
            report.add(shape, rows.figures(shape, settings, ceilings))
        except checks.Disagreement as error:
            report.found["notes"].append(f"wrong: {shape.text}: {error}")
            right = False
        except RuntimeError as error:  # JAX's own are such, too
            reason = str(error).splitlines()[0]
            report.found["notes"].append(f"not timed: {shape.text}: {reason}")
        gc.collect()
        last = time.monotonic() - start
    if left_out:
        note = f"time is up: left out {'; '.join(left_out)} (--minutes={MINUTES.value:g})"
        report.found["notes"].append(note)
    return report, right


def main(argv: list[str]) -> None:
    """Tests, table, JSON and plot, in that order."""
    tables.no_arguments(argv)
    end = time.monotonic() + 60 * MINUTES.value
    carried.require_gpu("gpu.py", options.BACKEND.value, options.DTYPE.value)
    given, load = options.shapes_and_load()
    settings = layer.settings(load)
    tests, passed = "tests: not run, --tests=false", True
    if TESTS.value:
        with tables.progress("running the kernels' tests on the GPU"):
            tests, passed = run_tests(60 * min(TEST_MINUTES.value, MINUTES.value))
    print(tests, flush=True)
    report, right = table(given if options.SHAPES.present else ORDER, end, settings)
    report.found["notes"].append(tests)
    report.close()
    if layer.PLOT.value and report.found["figures"]:
        import plots

        plots.draw(report.found, layer.PLOT.value)
    if not (passed and right and report.found["figures"]):
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
