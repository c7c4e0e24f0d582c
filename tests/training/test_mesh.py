"""Which axis splits what, for meshes that need no devices, and bad sizes."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from moe_jax.errors import UserError
from moe_jax.training import MeshConfig, make_mesh
from moe_jax.training.mesh import AXES, batch_axes, mesh_sizes, param_spec, place_batch


def abstract(data=1, fsdp=1, expert=1):
    return AbstractMesh((data, fsdp, expert), AXES, axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize(
    "config, devices, sizes",
    [
        ({}, 1, (1, 1, 1)),
        ({}, 8, (8, 1, 1)),
        ({"expert": 4}, 64, (16, 1, 4)),
        ({"data": 2, "fsdp": -1, "expert": 2}, 64, (2, 16, 2)),
        ({"data": 2}, 8, (2, 1, 1)),
    ],
)
def test_the_rest_of_the_devices(config, devices, sizes):
    found = mesh_sizes(MeshConfig(**config), devices)
    assert found == dict(zip(AXES, sizes, strict=True))


@pytest.mark.parametrize(
    "config, devices, message",
    [
        ({"expert": 3}, 8, r"^train.mesh has data=-1, fsdp=1, expert=3: 3 does not divide the 8"),
        ({"data": 4, "expert": 4}, 8, r"expert=4: 16 devices, but here are 8$"),
    ],
)
def test_devices_that_do_not_fit(config, devices, message):
    with pytest.raises(UserError, match=message):
        mesh_sizes(MeshConfig(**config), devices)


@pytest.mark.parametrize(
    "config, message",
    [
        (
            {"data": 0},
            r"^train.mesh.data=0: must be at least 1 \(or -1: as many as there are devices for\)$",
        ),
        ({"fsdp": 2.0}, r"^train.mesh.fsdp=2.0: must be a whole number, at least 1"),
        ({"expert": True}, r"^train.mesh.expert=True: must"),
        ({"expert": -1}, r"^train.mesh.expert=-1: must be at least 1 where train.mesh.data is -1"),
    ],
)
def test_bad_fields(config, message):
    mesh = MeshConfig()
    for name, size in config.items():
        setattr(mesh, name, size)  # as a flag does
    with pytest.raises(UserError, match=message):
        mesh.validate("train.mesh")


EDF = ("expert", "embed", "hidden")


@pytest.mark.parametrize(
    "shape, axes, mesh, spec",
    [
        # Experts over expert; the longest other axis that fsdp divides.
        ((8, 512, 1024), EDF, {"expert": 4, "fsdp": 2}, ("expert", None, "fsdp")),
        ((8, 512, 1023), EDF, {"expert": 4, "fsdp": 2}, ("expert", "fsdp")),
        ((8, 511, 1023), EDF, {"expert": 4, "fsdp": 2}, ("expert",)),
        ((8, 4, 4), EDF, {"expert": 4, "fsdp": 2}, ("expert",)),  # small
        ((512, 1024), None, {"fsdp": 2}, (None, "fsdp")),
        ((512, 1024), (None, None), {"fsdp": 2}, ()),
        ((512, 1023), None, {"fsdp": 2}, ("fsdp",)),
        ((1024,), None, {"fsdp": 2}, ()),  # small
        ((2**14,), None, {"fsdp": 2}, ("fsdp",)),
        ((512, 1024), None, {"expert": 8}, ()),  # an axis of size 1 splits nothing
        ((), None, {"fsdp": 2}, ()),
    ],
)
def test_where_a_parameter_lies(shape, axes, mesh, spec):
    assert param_spec("w", shape, axes, abstract(**mesh)) == jax.P(*spec)


def test_experts_that_the_axis_does_not_divide():
    with pytest.raises(UserError, match=r"^moe.w_in has 6 experts, which train.mesh.expert=4"):
        param_spec("moe.w_in", (6, 8, 8), EDF, abstract(expert=4))


def test_names_for_some_axes_only():
    with pytest.raises(ValueError, match=r"w has shape \(6, 8\), but axes=\('expert',\)"):
        param_spec("w", (6, 8), ("expert",), abstract())


def test_outside_a_step_the_batch_is_whole():
    assert batch_axes() == ()


def test_a_batch_on_one_device():
    placed = place_batch({"x": np.ones((3, 2)), "scale": np.float32(2)}, make_mesh(MeshConfig()))
    assert placed["x"].shape == (3, 2)
    assert placed["scale"] == 2
