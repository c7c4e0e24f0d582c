"""The Triton kernels in Triton's interpreter, held to the cases that all backends share.

`make triton` runs this file, with TRITON_INTERPRET=1. bfloat16 is left out: the interpreter
multiplies its bit patterns as integers (float16 takes the same paths through the kernels).
"""

import jax
import pytest
from moe_ffn_cases import SMALL, MoeFfnCases, problem
from ops_cases import OpsCases
from triton_interpreter import install

pytestmark = pytest.mark.triton


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    install(monkeypatch)


class TestLayer(MoeFfnCases):
    backend = "triton_gpu"

    @pytest.mark.parametrize("dtype", ["float16"])
    def test_half_precision(self, dtype):
        self.check(problem(9, t=SMALL, dtype=dtype), dtype=dtype)

    def test_double_precision(self):
        with jax.enable_x64(True), pytest.raises(ValueError, match="has no float64: cast to"):
            self.check(problem(9, t=SMALL, dtype="float64"), dtype="float64")


class TestOps(OpsCases):
    backend = "triton_gpu"
