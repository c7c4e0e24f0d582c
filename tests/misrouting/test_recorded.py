"""Routes recorded elsewhere: files, checks, and their replay through the gate."""

import json

import jax
import numpy as np
import pytest

from moe_jax.errors import UserError
from moe_jax.gating import GateConfig, route
from moe_jax.misrouting.recorded import read_routes, replay_recorded

T, L, K, E = 5, 3, 2, 8
CONFIG = GateConfig(num_experts=E, k=K)
SHAPE = {"num_experts": E, "num_layers": L, "k": K}


def routes(seed=0, k=K, num_experts=E, dtype=np.int16):
    draws = np.random.default_rng(seed).normal(size=(T, L, num_experts))
    return np.argsort(draws, axis=-1)[..., :k].astype(dtype)


@jax.jit
def routed(z, edit):
    return route(z, CONFIG, edit=edit)


def changed(index, value):
    array = routes()
    array[index] = value
    return array


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
def test_arrays_and_lists(dtype):
    want = routes(dtype=dtype)
    got = read_routes(want, num_tokens=T, **SHAPE)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(read_routes(want.tolist(), **SHAPE), want)


def test_files(tmp_path):
    want = routes()
    np.save(tmp_path / "a.npy", want)
    np.savez(tmp_path / "b.npz", routed_experts=want)
    np.savez_compressed(tmp_path / "c.npz", want)
    (tmp_path / "d.json").write_text(json.dumps(want.tolist()))
    for file in tmp_path.iterdir():
        np.testing.assert_array_equal(read_routes(file, **SHAPE), want)
        np.testing.assert_array_equal(read_routes(str(file), **SHAPE), want)


def test_layers_without_experts_are_left_out():
    want = routes()
    recorded = np.zeros((T, L + 2, K), np.int32)
    recorded[:, 1:4] = want
    np.testing.assert_array_equal(read_routes(recorded, layers=[1, 2, 3], **SHAPE), want)
    with pytest.raises(UserError, match="routes has 5 layers, the model has 3 with experts"):
        read_routes(recorded, **SHAPE)
    with pytest.raises(UserError, match="5 layers: there is no layer 7"):
        read_routes(recorded, layers=[1, 2, 7], **SHAPE)
    with pytest.raises(ValueError, match="layers names 1 layers, num_layers=3"):
        read_routes(recorded, layers=[1], **SHAPE)


@pytest.mark.parametrize("places", [[2], [0], [1, 3]])
def test_slots_of_shared_experts_are_dropped(places):
    want = routes(dtype=np.int32)
    with_shared = want
    for place in places:
        with_shared = np.insert(with_shared, place, 255, axis=2)
    np.testing.assert_array_equal(read_routes(with_shared, **SHAPE), want)


def test_expert_255_of_256():
    want = routes(num_experts=256, dtype=np.uint8)
    want[:, :, 0] = 255
    want[:, :, 1] %= 255
    shape = SHAPE | {"num_experts": 256}
    np.testing.assert_array_equal(read_routes(want, **shape), want)
    rest = read_routes(np.insert(want[..., 1:], 1, 255, axis=2), **shape | {"k": 1})
    np.testing.assert_array_equal(rest, want[..., 1:])


def test_one_expert_or_one_choice_may_be_all_zero():
    one = np.zeros((T, 1, 1), int)
    assert not read_routes(one, num_experts=1, num_layers=1, k=1).any()
    assert not read_routes(one[:1], num_experts=4, num_layers=1, k=1).any()
    with pytest.raises(UserError, match="is all zero: the engine recorded nothing"):
        read_routes(one, num_experts=4, num_layers=1, k=1)


@pytest.mark.parametrize(
    "source, message",
    [
        (np.zeros((T, L, K), int), "^routes is all zero: the engine recorded nothing"),
        (routes().astype(np.float32), "routes holds float32: must be whole numbers"),
        (routes() > 3, "routes holds bool: must be whole numbers"),
        ([[[1, 2]], [[3]]], "must be tokens x layers x k, every row as long"),
        ([[[1, None]]], "holds object: must be whole numbers"),
        ([], "routes has no tokens"),
        (np.zeros((0, L, K), int), "routes has 0 tokens, the prompt has 5"),
        (routes()[0], r"routes has shape \(3, 2\): must be tokens x layers x k"),
        (routes()[:-1], "4 tokens, the prompt has 5 .the last generated token is never run"),
        (routes()[:-2], "routes has 3 tokens, the prompt has 5$"),
        (routes()[:, :2], "routes has 2 layers, the model has 3 with experts"),
        (routes(k=3), "routes has 3 choices a token; the gate has k=2"),
        (changed((..., 1), 255), "2 choices a token, 1 of them of shared experts .255.; the gate"),
        (changed((3, 1, 0), 255), "token 3, layer 1, choice 0 is 255, SGLang's mark"),
        (changed((3, 1, 0), 8), "token 3, layer 1 has expert 8: ids go from 0 to 7"),
        (changed((2, 0, 1), -1), "token 2, layer 0 has expert -1"),
        (changed((4, 2), 5), r"token 4, layer 2 has an expert twice: \[5, 5\] .1 such rows"),
        (changed(slice(3, 5), 0), r"token 3, layer 0 has an expert twice: \[0, 0\] .6 such rows"),
    ],
)
def test_refused(source, message):
    with pytest.raises(UserError, match=message):
        read_routes(source, num_tokens=T, **SHAPE)


def test_files_refused(tmp_path):
    np.save(tmp_path / "object.npy", np.array([{"a": 1}, None], dtype=object))
    np.savez(tmp_path / "two.npz", a=routes(), b=routes())
    np.savez(tmp_path / "object.npz", a=np.array([None], dtype=object))
    (tmp_path / "cut.json").write_text("[[[1, 2]")
    (tmp_path / "dict.json").write_text('{"routes": [1]}')
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "text.npz").write_text("not an array")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "routes.pkl").write_bytes(b"")
    np.save(tmp_path / "zero.npy", routes() * 0)
    for file, message in (
        ("object.npy", "object.npy: routes can't be read: .*pickle"),
        ("object.npz", "object.npz: routes can't be read: .*pickle"),
        ("two.npz", "two.npz: routes: the .npz must hold one array, it holds a, b"),
        ("cut.json", "cut.json: routes: not JSON \\(Expecting"),
        ("dict.json", "dict.json: routes holds object"),
        ("text.npy", "text.npy: routes can't be read"),
        ("text.npz", "text.npz: routes can't be read"),
        ("empty.npy", "empty.npy: routes can't be read: No data left"),
        ("routes.pkl", "routes.pkl: routes must be a .npy, .npz or .json file"),
        ("zero.npy", "zero.npy: routes is all zero"),
        ("missing.npy", "missing.npy: routes can't be read: .*No such file"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read_routes(tmp_path / file, **SHAPE)
        assert "\n" not in str(caught.value)


def test_replay_through_the_gate():
    """Recorded rows are followed, the token that the engine never ran is routed as usual."""
    recorded = read_routes(routes(), **SHAPE)
    edit = replay_recorded(CONFIG, recorded, num_tokens=T + 1)
    z = np.random.default_rng(3).normal(size=(L, T + 1, E)).astype(np.float32)
    for layer in range(L):
        one = jax.tree.map(lambda a, m=layer: a[m], edit)
        got, base = (routed(z[layer], x) for x in (one, None))
        np.testing.assert_array_equal(got.expert[:T], recorded[:, layer])
        np.testing.assert_array_equal(got.expert[T], base.expert[T])
        p = np.asarray(base.probs)
        np.testing.assert_array_equal(got.weight, np.take_along_axis(p, np.asarray(got.expert), 1))


def test_replay_of_weights_and_scope():
    recorded = read_routes(routes(), **SHAPE)
    weight = np.random.default_rng(1).random((T, L, K)).astype(np.float32)
    scope = np.arange(T + 2) != 2
    edit = replay_recorded(CONFIG, recorded, num_tokens=T + 2, weight=weight, tokens=scope)
    z = np.random.default_rng(3).normal(size=(T + 2, E)).astype(np.float32)
    got, base = routed(z, jax.tree.map(lambda a: a[1], edit)), routed(z, None)
    followed = scope & (np.arange(T + 2) < T)
    np.testing.assert_array_equal(got.weight[followed], weight[followed[:T], 1])
    np.testing.assert_array_equal(got.expert[~followed], base.expert[~followed])
    np.testing.assert_array_equal(got.weight[~followed], base.weight[~followed])


def test_more_routes_than_tokens():
    with pytest.raises(UserError, match="routes have 5 tokens, the prompt has 4"):
        replay_recorded(CONFIG, routes(), num_tokens=4)
    with pytest.raises(ValueError, match="expert has 2 slots, the gate has 3"):
        replay_recorded(GateConfig(num_experts=E, k=3), routes())


def test_arrays_of_all_layers_or_of_those_with_experts():
    want, engine = routes(), {**SHAPE, "layers": [1, 2, 3], "all_layers": 5}
    for fill in (0, 255):
        recorded = np.full((T, L + 2, K), fill, np.int32)
        recorded[:, 1:4] = want
        np.testing.assert_array_equal(read_routes(recorded, **engine), want)
    np.testing.assert_array_equal(read_routes(want, **engine), want)
    recorded[2, 4, 1] = 3
    with pytest.raises(UserError, match="has experts in layer 4, where the model has none"):
        read_routes(recorded, **engine)
    with pytest.raises(UserError, match="has 4 layers, the model has 3 with experts, 5 in all"):
        read_routes(recorded[:, :4], **engine)


def test_one_choice_moved_to_other_layers_is_refused():
    """Rows of the layers with experts, put first, and zeros: no row has an expert twice here."""
    recorded = np.zeros((T, L + 2, 1), np.int32)
    recorded[:, :3] = routes(k=1)
    shape = {"num_experts": E, "num_layers": L, "k": 1, "layers": [2, 3, 4], "all_layers": 5}
    with pytest.raises(UserError, match="has experts in layer 0, where the model has none"):
        read_routes(recorded, **shape)
