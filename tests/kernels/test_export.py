"""Programs that are exported, written, read and run in another process."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from moe_kernels import EXPORT_CHECKS_OFF, moe_ffn

from tests.kernels.moe_ffn_cases import problem


def layer(backend):
    _, expert, weight, params, _ = problem(0, t=3)
    return jax.jit(lambda x: moe_ffn(x, expert, weight, **params, backend=backend))


def test_c_kernels_run_in_another_process(tmp_path):
    x = problem(0, t=3)[0]
    function = layer("c_cpu")
    written = export.export(function, disabled_checks=EXPORT_CHECKS_OFF)(x)
    (tmp_path / "layer").write_bytes(written.serialize(vjp_order=1))
    want = function(x), jax.vjp(function, x)[1](x)[0]
    np.savez(tmp_path / "arrays.npz", x=x, y=want[0], dx=want[1])
    program = """
        import jax, moe_kernels, numpy as np, sys
        from jax import export
        from pathlib import Path
        moe_kernels.resolve_backend("c_cpu")
        call = export.deserialize(bytearray(Path(sys.argv[1], "layer").read_bytes())).call
        arrays = np.load(Path(sys.argv[1], "arrays.npz"))
        y, pull = jax.vjp(call, arrays["x"])
        np.testing.assert_array_equal(y, arrays["y"])
        np.testing.assert_array_equal(pull(arrays["x"])[0], arrays["dx"])
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    subprocess.run(command, check=True)


def test_one_program_for_several_platforms():
    x = problem(0, t=3)[0]
    several = export.export(
        layer(None), platforms=("cpu", "tpu"), disabled_checks=EXPORT_CHECKS_OFF
    )(x)
    assert several.platforms == ("cpu", "tpu")
    np.testing.assert_array_equal(several.call(x), layer(None)(x))
    with pytest.raises(ValueError, match="backend='c_cpu' runs on cpu, but this program is for"):
        export.export(layer("c_cpu"), platforms=("cpu", "tpu"))(x)


def test_xla_needs_no_check_turned_off():
    x = problem(0, t=3)[0]
    np.testing.assert_array_equal(export.export(layer("xla"))(x).call(x), layer("xla")(x))


def test_symbolic_shapes_are_for_the_reference():
    x, expert, weight, params, _ = problem(0, t=3)
    (t,) = export.symbolic_shape("t")
    types = [jax.ShapeDtypeStruct((t, a.shape[1]), a.dtype) for a in (x, expert, weight)]

    def exported(backend):
        function = jax.jit(lambda *args: moe_ffn(*args, **params, backend=backend))
        return export.export(function)(*types)

    got = exported("reference").call(x, expert, weight)
    want = moe_ffn(x, expert, weight, **params, backend="reference")
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"^an argument has the symbolic shape \(t, 6\), which only"
    ):
        exported("xla")
    assert jnp.isfinite(got).all()
