import jax
import jax.numpy as jnp
import pytest

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
