"""scripts/scaling.py: its model of the networks, by hand, and its table."""

import importlib.util
from pathlib import Path

import pytest

from moe_jax.training import Collective

PATH = Path(__file__).resolve().parents[2] / "scripts" / "scaling.py"


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sent(kind, axis, devices, operand):
    return Collective(kind, (axis,), devices, "", False, 1, False, operand)


@pytest.mark.parametrize(
    "collective, expert, chips, h100, v5p",
    [
        # 8 GPUs of a node: 7/8 of the buffer over NVLink. A 2x2x2 cube: half of each chip's buffer
        # crosses its middle, four chips over four links.
        (sent("all_to_all", "expert", 8, 8e9), 8, 64, 7e9 / 450e9, 4e9 / 100e9),
        # 64 over 8 nodes: 56/64 leave by InfiniBand. The whole 4x4x4 torus: 32 chips send half of
        # their buffers over 16 rows with two links each way round.
        (sent("all_to_all", "expert", 64, 8e9), 64, 64, 7e9 / 50e9, 32 * 4e9 / (16 * 2 * 100e9)),
        # 8 members, each in another node; in the torus two such groups share each row's links.
        (sent("reduce_scatter", "fsdp", 8, 8e9), 8, 64, 7e9 / 50e9, 7e9 / (6 * 100e9 / 2)),
        (sent("all_gather", "fsdp", 8, 1e9), 8, 64, 7e9 / 50e9, 7e9 / (6 * 100e9 / 2)),
        # All 64: in the node first, then an eighth over InfiniBand, and back.
        (
            Collective("all_reduce", ("fsdp", "expert"), 64, "", False, 1, False, 8_000_000_000),
            8,
            64,
            2 * (7e9 / 450e9 + 1e9 * 7 / 8 / 50e9),
            2 * 8e9 * 63 / 64 / 600e9,
        ),
    ],
)
def test_seconds_by_hand(scaling, collective, expert, chips, h100, v5p):
    collective = collective._replace(operand=int(collective.operand))
    found = [n.seconds(collective, expert, chips) for n in scaling.NETWORKS]
    assert found == pytest.approx([h100, v5p])


def test_a_row_adds_up(scaling):
    from absl import flags

    flags.FLAGS.mark_as_parsed() if not flags.FLAGS.is_parsed() else None
    shape = scaling.Shape(256, 512, 64, 4)
    row = scaling._row(scaling.NETWORKS[0], shape, 64, 8)
    chips, expert, tokens_gb, _, products, tokens, weights, share, bound = row
    assert (chips, expert) == ("64", "8")
    # Four trips of 8,192 * 4 rows of 256 bfloat16 with a quarter of slack, 7/8 of them to others;
    # ids and weights besides.
    rows = 1.25 * 8192 * 4
    assert float(tokens_gb) == pytest.approx(rows * (4 * 512 + 10) * 7 / 8 / 1e9, abs=0.006)
    assert float(products) == pytest.approx(18 * 8192 * 4 * 256 * 512 / 989e12 * 1e3, abs=0.06)
    total = float(products) + float(tokens) + float(weights)
    assert float(share.rstrip("%")) / 100 == pytest.approx(1 - float(products) / total, abs=0.1)
    assert bound in ("products", "tokens", "weights")
