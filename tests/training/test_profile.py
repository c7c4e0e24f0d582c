"""A trace of some steps, and the first NaN found."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from moe_jax.errors import UserError
from moe_jax.training import MeshConfig, ProfileSteps, TrainConfig, train
from tests.training import toy
from tests.training.moe_toy import Wrapped


def test_a_trace_of_two_steps(tmp_path):
    config = TrainConfig(steps=6, log_every=3, checkpoint_every=6)
    train(toy.ToyTask(), config, tmp_path, profile=ProfileSteps(2, 3))
    (trace,) = (tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb")
    found = jax.profiler.ProfileData.from_file(str(trace))
    names = {event.name for plane in found.planes for line in plane.lines for event in line.events}
    assert any("step" in name for name in names)


def test_a_run_that_ends_within_the_steps_leaves_no_trace_open(tmp_path):
    class Ends(Wrapped):
        left = 2

        def __next__(self):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("no more")
            return next(self.inner)

    class Fails(toy.ToyTask):
        def train_data(self, part=(0, 1)):
            return Ends(super().train_data(part))

    config = TrainConfig(steps=6, log_every=3, checkpoint_every=6)
    with pytest.raises(RuntimeError, match="no more"):
        train(Fails(), config, tmp_path / "a", profile=ProfileSteps(1, 6))
    train(toy.ToyTask(), config, tmp_path / "b", profile=ProfileSteps(1, 1))


@pytest.mark.parametrize("text", ["", "3", "3:", ":3", "5:3", "0:2", "a:b", "-1:2", "1:2:3"])
def test_no_range(text):
    with pytest.raises(UserError, match=r"must be FIRST:LAST"):
        ProfileSteps.parse(text)


def test_a_range():
    assert ProfileSteps.parse("10:15") == (10, 15)


def test_steps_that_are_not_made(tmp_path):
    config = TrainConfig(steps=4, log_every=2, checkpoint_every=2)
    with pytest.raises(UserError, match=r"--profile_steps=3:5: the steps that are left are 1 to 4"):
        train(toy.ToyTask(), config, tmp_path, profile=ProfileSteps(3, 5))


class Infinite(toy.ToyTask):
    """Its loss is NaN where the batch has a negative label."""

    def loss(self, model, batch, rngs):
        loss, metrics = super().loss(model, batch, rngs)
        return loss * jnp.log(jnp.sum(batch["x"] ** 2) * 0 - 1), metrics


@pytest.mark.parametrize("sizes", [{"data": 1}, pytest.param({}, marks=pytest.mark.mesh)])
def test_the_first_nan_is_found(tmp_path, sizes):
    config = TrainConfig(steps=4, log_every=2, checkpoint_every=2, mesh=MeshConfig(**sizes))
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan") as caught:
        train(Infinite(), config, tmp_path)
    assert any(
        Path(entry.path).name == "test_profile.py" and entry.name == "loss"
        for entry in caught.traceback
    )
