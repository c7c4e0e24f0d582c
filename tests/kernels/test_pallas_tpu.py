"""The TPU kernels in Pallas' interpreter for TPUs, held to the cases that all backends share."""

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu
from moe_ffn_cases import SMALL, MoeFfnCases, problem
from moe_kernels import backends
from ops_cases import OpsCases


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Kernels are interpreted, in a program for the CPU."""
    monkeypatch.setitem(backends.RUNS_ON, "pallas_tpu", ("cpu",))
    with pltpu.force_tpu_interpret_mode():
        yield


class TestLayer(MoeFfnCases):
    backend = "pallas_tpu"

    def test_double_precision(self):
        with jax.enable_x64(True), pytest.raises(ValueError, match="has no float64: cast to"):
            self.check(problem(9, t=SMALL, dtype="float64"), dtype="float64")


class TestOps(OpsCases):
    backend = "pallas_tpu"
