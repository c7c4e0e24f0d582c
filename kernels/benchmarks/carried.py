"""For a machine without a network: finds moe_kernels beside this folder, and wheels in `.whl`.

Imported before anything that needs them. A wheel is a zip file that Python can import from, as long
as it is pure Python, which that of jax_triton is; so nothing gets installed.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / ".whl"
PATHS = [str(ROOT / "kernels"), *map(str, sorted(WHEELS.glob("*-none-any.whl")))]
"""What is put before everything else that Python searches."""

BRING = "pip download --no-deps -d .whl jax-triton==0.4.1"

sys.path[:0] = PATHS


def require_gpu(script: str, backend: str | None, dtype: str) -> None:
    """Ends the program with one line and exit code 2 unless the Triton kernels can be timed here.

    Args:
      script: its name, for the line.
      backend: what the user named, or None.
      dtype: of the arrays that are to be timed.
    """
    import jax
    import moe_kernels
    import tables
    from moe_kernels import backends

    if backend not in (None, "triton_gpu"):
        tables.fail(f"{script} is for triton_gpu, not --backend={backend}: layer.py times others")
    if reason := backends.missing("triton_gpu"):
        tables.fail(
            f"{script} needs triton_gpu: {reason}; without a network: run `{BRING}` "
            "where there is one, and bring the folder .whl along, beside kernels/"
        )
    if jax.default_backend() != "gpu":
        tables.fail(f"{script} needs a GPU; JAX has only {jax.default_backend()} here")
    if (found := moe_kernels.resolve_backend(backend, dtype)) != "triton_gpu":
        tables.fail(f"{script} is for triton_gpu, but {dtype} on this GPU would run by {found}")
