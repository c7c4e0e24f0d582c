"""The reference backend, held to the cases that all backends share."""

from tests.kernels.moe_ffn_cases import MoeFfnCases


class TestReference(MoeFfnCases):
    backend = "reference"
