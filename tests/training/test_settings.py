"""Settings of JAX that change results: a run goes on under those that it was begun with."""

import jax
import numpy as np
import pytest

from moe_jax.errors import UserError
from moe_jax.training import TrainConfig, seal, settings, train
from tests.training import toy

CONFIG = TrainConfig(steps=4, checkpoint_every=2, log_every=2)


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a run of 4 steps whose last checkpoint is gone."""
    workdir = tmp_path_factory.mktemp("begun")
    train(toy.ToyTask(), CONFIG, workdir)
    return workdir


def go_on(workdir):
    return train(toy.ToyTask(), CONFIG, workdir)


@pytest.mark.parametrize(
    ("manager", "says"),
    [
        (lambda: jax.enable_x64(True), "jax_enable_x64=False, this process has True"),
        (lambda: jax.default_prng_impl("rbg"), "jax_default_prng_impl=threefry2x32, this proc"),
        (lambda: jax.threefry_partitionable(False), "jax_threefry_partitionable=True, this proc"),
        (
            lambda: jax.default_matmul_precision("bfloat16"),
            "jax_default_matmul_precision=None, this process has bfloat16, which changes results: "
            "unset JAX_DEFAULT_MATMUL_PRECISION in the environment",
        ),
    ],
)
def test_other_settings_are_refused_before_anything_is_written(begun, manager, says):
    before = files(begun)
    with manager(), pytest.raises(UserError) as caught:
        go_on(begun)
    assert str(caught.value).startswith(f"checkpoint {begun / 'checkpoints' / '4'} was begun with ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(begun) == before


def test_the_line_says_what_to_set(begun):
    with pytest.raises(UserError, match="set JAX_ENABLE_X64=True in the environment"):
        settings.check({"jax_enable_x64": "True"}, "the run")
    settings.check(settings.current(), "the run")
    settings.check({"jax_of_another_version": "1"}, "the run")


def _as_older_versions_wrote(folder):
    for path in (folder / "checkpoints").iterdir():
        run = seal.record(path)
        assert run.pop("jax") == settings.current()
        (path / "run.json").unlink()
        seal.write_record(path, run)


def test_checkpoints_without_a_record_go_on(begun, tmp_path):
    """Only the kind of their key tells of the random numbers."""
    model = go_on(begun)
    _as_older_versions_wrote(begun)
    for one, other in zip(
        jax.tree.leaves(toy.nnx.state(model)),
        jax.tree.leaves(toy.nnx.state(go_on(begun))),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    with jax.default_prng_impl("rbg"), pytest.raises(UserError, match="_impl=threefry2x32, this"):
        go_on(begun)
