import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe_jax.models import compiled


@pytest.fixture
def limit(tmp_path, monkeypatch):
    """Writes how many maps a process may have."""

    def write(count):
        (tmp_path / "limit").write_text(f"{count}\n")
        monkeypatch.setattr(compiled, "_LIMIT", tmp_path / "limit")

    return write


@pytest.fixture
def maps(tmp_path, monkeypatch):
    (tmp_path / "maps").write_text("a map\n" * 60)
    monkeypatch.setattr(compiled, "_MAPS", tmp_path / "maps")


@pytest.mark.usefixtures("maps")
def test_programs_are_dropped_beyond_half_of_the_maps_and_compiled_again(limit):
    traced = []

    @jax.jit
    def double(x):
        traced.append(x.shape)
        return 2 * x

    assert double(jnp.ones(3)).tolist() == [2, 2, 2]
    limit(120)
    assert not compiled.free_programs()
    double(jnp.ones(3))
    assert len(traced) == 1
    limit(119)
    assert compiled.free_programs()
    assert double(jnp.ones(3)).tolist() == [2, 2, 2]
    assert len(traced) == 2


@pytest.mark.usefixtures("maps")
def test_the_share_can_be_another(limit):
    limit(100)
    assert compiled.free_programs(share=0.59)
    assert not compiled.free_programs(share=0.6)


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "_MAPS", tmp_path / "none")
    assert not compiled.free_programs(share=0.0)


class Scaled(nnx.Module):
    """w x, with noise where it isn't in eval mode."""

    def __init__(self, weight, bias=False):
        self.weight = nnx.Param(jnp.asarray(weight, jnp.float32))
        self.bias = nnx.Param(jnp.ones(())) if bias else None
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        y = self.drop(self.weight[...] * x)
        return y if self.bias is None else y + self.bias[...]


@pytest.fixture
def times():
    """A function of a model, and the shapes that it was traced with."""
    traced = []

    @compiled.per_structure(static_argnames="power", donate_argnames="x")
    def run(model, x, power=1):
        """Docs."""
        traced.append((x.shape, power))
        return model(x) ** power

    return run, traced


def test_models_of_one_structure_share_a_program(times):
    run, traced = times
    for weight in (2.0, 3.0):
        model = Scaled(weight)
        got = [run(model, jnp.full(3, i), power=2).tolist() for i in (1.0, 2.0)]
        assert got == [[weight**2] * 3, [4 * weight**2] * 3]
        assert not model.drop.deterministic  # what it is given stays as it was
    assert traced == [((3,), 2)]


def test_other_shapes_settings_and_structures_are_traced_once_each(times):
    run, traced = times
    plain, biased = Scaled(2.0), Scaled(2.0, bias=True)
    for _ in range(2):
        run(plain, jnp.ones(3))
        run(plain, jnp.ones(4))
        run(plain, jnp.ones(3), 2)
        assert run(biased, jnp.ones(3)).tolist() == [3, 3, 3]
    assert traced == [((3,), 1), ((4,), 1), ((3,), 2), ((3,), 1)]


def test_a_bound_program_has_the_weights_of_its_model(times):
    run, traced = times
    model = Scaled(2.0)
    program = run.of(compiled.flat_model(model))
    other = run.of(compiled.flat_model(Scaled(5.0)))
    assert [program(jnp.ones(2)).tolist(), other(jnp.ones(2)).tolist()] == [[2, 2], [5, 5]]
    assert run(model, np.ones(2, np.float32)).tolist() == [2, 2]
    assert len(traced) == 1


def test_arguments_are_donated_by_name(times):
    x = jnp.ones(3)
    times[0](Scaled(2.0), x)
    assert x.is_deleted()


def test_it_looks_like_the_function(times):
    assert (times[0].__name__, times[0].__doc__) == ("run", "Docs.")
