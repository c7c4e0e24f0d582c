"""Tiles are checked before they are timed, stored, found again, and used by the kernels."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.triton_interpreter import install

pytestmark = pytest.mark.triton
FOLDER = Path(__file__).parents[2] / "kernels" / "benchmarks"
PROBLEM = ("up_glu", 512, 8, 256, 128, "bfloat16")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    install(monkeypatch)
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU by name only, whose tiles are looked for in a folder of ours; gives the file."""
    from moe_kernels.triton_gpu import tuned

    toy = SimpleNamespace(device_kind="Toy GPU-1")
    monkeypatch.setattr(tuned, "jax", SimpleNamespace(devices=lambda _: [toy]))
    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path))
    tuned.here.cache_clear()
    yield tmp_path / "toy_gpu_1.json"
    monkeypatch.undo()
    tuned.here.cache_clear()


def tiles():
    from moe_kernels.triton_gpu.tiles import Tile

    return Tile(16, 64, 32, 4, 2), Tile(32, 64, 32, 4, 3)


def test_a_stored_tile_is_chosen_for_loads_near_its_own(gpu):
    from moe_kernels.triton_gpu import tuned

    tile, _ = tiles()
    assert tuned.choose(*PROBLEM) == tuned.heuristic(*PROBLEM) != tile
    tuned.here.cache_clear()
    tuned.write(gpu, {tuned.key(*PROBLEM): tile}, {"device": "Toy GPU-1"})
    kernel, _, e, n, k, dtype = PROBLEM
    for mean, known in ((64, True), (65, True), (46, True), (90, True), (45, False), (91, False)):
        found = tuned.choose(kernel, mean * e, e, n, k, dtype)
        assert (found == tile) == known
    assert tuned.choose("up", *PROBLEM[1:]) != tile
    assert tuned.choose(*PROBLEM[:-1], "float32") != tile


def test_a_launch_uses_the_stored_tile(gpu, monkeypatch):
    from moe_kernels.triton_gpu import tuned

    room = importlib.import_module("moe_kernels.triton_gpu.grouped_matmul")
    tile, _ = tiles()
    x, w = jnp.ones((40, 16)), jnp.ones((2, 16, 24))
    tuned.write(gpu, {tuned.key("grouped_matmul", 40, 2, 24, 16, "float32"): tile}, {})
    used = []
    launch = room.launch
    monkeypatch.setattr(
        room, "launch", lambda *a, **more: used.append(more["tile"]) or launch(*a, **more)
    )
    y = room.grouped_matmul(x, w, jnp.array([0, 10, 40]))
    assert used == [tile]
    np.testing.assert_array_equal(y, np.full((40, 24), 16.0))


def test_without_a_gpu_nothing_is_looked_up(monkeypatch):
    from moe_kernels.triton_gpu import tuned

    tuned.here.cache_clear()
    assert tuned.here() == {}
    assert tuned.choose(*PROBLEM) == tuned.heuristic(*PROBLEM)


def test_writing_again_keeps_other_tiles(tmp_path):
    from moe_kernels.triton_gpu import tuned

    first, second = tiles()
    path = tmp_path / "deeper" / "a.json"
    tuned.write(path, {"a": first, "b": first}, {"date": "1"})
    tuned.write(path, {"b": second}, {"date": "2"})
    assert tuned.read(path) == {"a": first, "b": second}
    assert json.loads(path.read_text())["about"] == {"date": "2"}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"tiles": {"a": 3}}', '{"tiles": {"a": {"block_m": 16}}}'],
)
def test_a_damaged_file_is_named(tmp_path, text):
    from moe_kernels.triton_gpu import tuned

    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.json does not hold tiles .*tune\.py"):
        tuned.read(path)


def test_a_size_below_one_is_refused(tmp_path):
    from moe_kernels.triton_gpu import tuned

    path = tmp_path / "a.json"
    tuned.write(path, {"a": tiles()[0]._replace(block_m=0)}, {})
    with pytest.raises(ValueError, match="whole number"):
        tuned.read(path)


@pytest.mark.parametrize("kernel", ["up_glu", "grouped_matmul", "hidden_grad", "weight_grad"])
def test_candidates_begin_with_the_heuristic_and_differ(kernel):
    import tune
    from moe_kernels.triton_gpu import tuned

    first = tuned.heuristic(kernel, 8192, 64, 1024, 2048, "bfloat16")
    found = list(tune.candidates(first, kernel, tuned.HELD[kernel], 2))
    assert found[0] == first
    assert len(found) == len(set(found)) > 5


class Wrong:
    """A case whose tiles give: right, wrong in one value, NaN, an error."""

    def __init__(self, answers):
        from tune_cases import Case

        x = jnp.arange(6.0) + 1

        def kernel(x, *, tile):
            answer = answers[tile]
            if isinstance(answer, Exception):
                raise answer
            return (x.at[2].add(answer),)

        self.case = Case(("up", 6, 1, 1, 1, "float32"), kernel, lambda x: (x,), (x,), 6)


def test_wrong_and_unfit_tiles_are_counted_and_never_chosen(monkeypatch):
    import interleave
    import tune

    answers = {"a": 0.0, "b": 0.1, "c": np.nan, "d": RuntimeError("no room"), "e": 0.0}
    clock = {"0": 2.0, "4": 1.0}

    def measure(rivals, repeats):
        assert set(rivals) == set(clock)
        return {name: interleave.Times(clock[name], 0.0) for name in rivals}

    monkeypatch.setattr(interleave, "measure", measure)
    found = tune.best(Wrong(answers).case, list(answers), 1)
    assert found == ("e", 1.0, 2.0, 5, 2, ("no room",))


@pytest.mark.parametrize("answer", [0.5, np.nan, RuntimeError("no room")])
def test_a_faulty_heuristic_tile_ends_it(answer):
    import checks
    import tune

    with pytest.raises(checks.Disagreement, match="up: a"):
        tune.best(Wrong({"a": answer}).case, ["a"], 1)


def test_every_product_agrees_with_its_oracle_and_is_stored(monkeypatch, tmp_path):
    import loads
    import options
    import tables
    import tune
    from moe_kernels.triton_gpu import tuned

    options.flags.FLAGS(["tune.py", "--repeats=1"])
    monkeypatch.setattr(tune, "candidates", lambda first, *_: [first, tiles()[0]])
    shape = loads.Shape(48, 24, 40, 3, 2)
    table = tables.Table(tune.COLUMNS)
    assert tune.tune(shape, loads.Load("zipf"), tmp_path, table, float("inf")) == []
    assert [row[1] for row in table.rows] == [
        "up_glu",
        "grouped_matmul",
        "grouped_matmul_transposed",
        "hidden_grad",
        "weight_grad",
        "weight_grad",
    ]
    assert {row[-3:] for row in table.rows} == {("2", "0", "0")}
    path = tmp_path / tuned.file_name(jax.devices()[0].device_kind)
    assert len(tuned.read(path)) == 6
    late = tune.tune(shape, loads.Load("zipf"), tmp_path, table, 0.0)
    assert late[0] == "48,24,40,3,2 up_glu"
    assert len(late) == 6


@pytest.mark.parametrize("tokens", [48, 64])
def test_the_layer_finds_all_that_was_tuned_for_its_shape(gpu, monkeypatch, tokens):
    """Its rows are padded, and so must be those that are tuned."""
    import checks
    import loads
    import tune_cases
    from moe_kernels.triton_gpu import tuned

    shape = loads.Shape(tokens, 24, 40, 2, 2)
    data = loads.routed(shape, 0, "float32", loads.Load("uniform"))
    keys = [tuned.key(*case.problem) for case in tune_cases.cases(shape, data)]
    tuned.write(gpu, dict.fromkeys(keys, tiles()[0]), {})

    def untuned(*problem):
        raise AssertionError(f"{problem} was not tuned")

    monkeypatch.setattr(tuned, "heuristic", untuned)
    params = {name: data[name] for name in checks.PARAMETERS}
    both = checks.layer("triton_gpu")[1]
    own = (data["x"], data["weight"], params, data["expert"])
    checks.check("layer", lambda dy: both(*own, dy), data)
