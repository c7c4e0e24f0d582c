"""Safetensors folders that are damaged, or whose files contradict each other."""

import json
import re

import numpy as np
import pytest

from moe_jax.errors import UserError
from moe_jax.models.tensor_files import INDEX, WHOLE, open_tensors
from tests.models import small_files

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, np.float16)
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def read_all(folder):
    found = open_tensors(folder)
    return {name: found.read(name) for name in found.shapes}


def fails(folder, match):
    """One line, with these words."""
    with pytest.raises(UserError, match=match) as caught:
        read_all(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(folder) in str(caught.value)


def write_shards(folder, first, second, weight_map):
    small_files.save_tensors(first, folder / FIRST)
    small_files.save_tensors(second, folder / SECOND)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_every_dtype_of_weights_is_read_as_it_stands(tmp_path):
    random = np.random.RandomState(0)
    tensors = {"odd": np.zeros(3, small_files.E4M3), "scalar": np.float32(3.5), "empty": A[:0]}
    for name in ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
        tensors[name] = random.randn(2, 3, 4).astype(np.dtype(name))
    small_files.save_tensors({n: np.asarray(v) for n, v in tensors.items()}, tmp_path / WHOLE)
    found = open_tensors(tmp_path)
    assert set(found.shapes) == set(tensors)
    for name, value in tensors.items():
        got = found.read(name)
        assert (got.dtype, got.shape) == (np.asarray(value).dtype, np.shape(value))
        np.testing.assert_array_equal(got.astype(np.float64), np.asarray(value).astype(np.float64))
    np.testing.assert_array_equal(
        found.read("bfloat16", (1, slice(0, 2))), tensors["bfloat16"][1, :2]
    )


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "int64"])
def test_whole_numbers_are_no_weights(kind, tmp_path):
    small_files.save_tensors({"a": A, "b": np.ones(3, np.dtype(kind))}, tmp_path / WHOLE)
    fails(tmp_path, f"b is of dtype {small_files.KINDS[kind]}, .* quantised .*unquantised files")


def test_shards_are_read_as_listed(tmp_path):
    write_shards(tmp_path, {"a": A}, {"b": B}, {"a": FIRST, "b": SECOND})
    np.testing.assert_array_equal(open_tensors(tmp_path).read("b"), B)
    # A list that says nothing of a tensor doesn't contradict the file.
    write_shards(tmp_path, {"a": A}, {"b": B, "c": A}, {"a": FIRST, "b": SECOND})
    np.testing.assert_array_equal(open_tensors(tmp_path).read("c"), A)


@pytest.mark.parametrize(
    ("first", "second", "weight_map", "match"),
    [
        ({"a": A}, {"a": A + 1, "b": B}, {"a": FIRST, "b": SECOND}, f"a twice: in {FIRST} and in"),
        ({"a": A}, {"b": B}, {"a": SECOND, "b": SECOND, "c": FIRST}, f"a is in {FIRST}, not in"),
        ({"a": A}, {"b": B}, {"a": FIRST, "b": SECOND, "c": FIRST}, "c is in no file, not in"),
        ({"a": A}, {"b": B}, {"a": FIRST, "b": 3}, "weight_map.b=3 must be a file's name"),
        ({"a": A}, {"b": B}, {"a": FIRST, "b": [SECOND]}, "weight_map.b=.* must be a file's name"),
        ({"a": A}, {"b": B}, {"a": FIRST, "b": "../b.safetensors"}, "is not in that folder"),
        ({"a": A}, {"b": B}, {"a": FIRST, "b": ".."}, "is not in that folder"),
        ({"a": A}, {"b": B}, {"a": FIRST, "b": "/etc/passwd"}, "is not in that folder"),
        ({"a": A}, {"b": B}, {"a": FIRST, "b": "b\n\0"}, "is not in that folder"),
        ({"a": A}, {"b": B}, {"a": FIRST, "b": "b" * 5000}, "is not in that folder"),
        ({"a": A}, {"b": B}, {"a": FIRST, "b": INDEX}, "is not a whole safetensors file"),
        ({"a": A}, {"b": B}, {}, "has no weight_map"),
        ({"a": A}, {"b": B}, [FIRST], "has no weight_map"),
    ],
)
def test_shards_and_lists_that_contradict_each_other(first, second, weight_map, match, tmp_path):
    write_shards(tmp_path, first, second, weight_map)
    fails(tmp_path, match)


def test_a_whole_file_beside_shards(tmp_path):
    write_shards(tmp_path, {"a": A}, {"b": B}, {"a": FIRST, "b": SECOND})
    small_files.save_tensors({"a": A + 1, "b": B}, tmp_path / WHOLE)
    fails(tmp_path, f"twice: {WHOLE}, and shards that {re.escape(INDEX)} lists")
    # Without its shards the list is an old one, as transformers has it; it may list the whole file.
    (tmp_path / FIRST).unlink()
    (tmp_path / SECOND).unlink()
    np.testing.assert_array_equal(open_tensors(tmp_path).read("a"), A + 1)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": WHOLE, "b": WHOLE}}))
    np.testing.assert_array_equal(open_tensors(tmp_path).read("a"), A + 1)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": WHOLE, "c": WHOLE}}))
    fails(tmp_path, "c is in no file, not in model.safetensors")


def edited(name, **changes):
    def edit(header):
        header[name].update(changes)

    return edit


DAMAGES = {
    "overlap": edited("b", data_offsets=[0, 8]),
    "turned round": edited("a", data_offsets=[24, 0]),
    "one offset": edited("a", data_offsets=[0]),
    "no offsets": edited("a", data_offsets="x"),
    "unknown dtype": edited("a", dtype="F99"),
    "too large": edited("a", shape=[2**63, 4]),
    "negative": edited("a", shape=[-2, -3]),
    "a hole": lambda header: header.pop("a"),
    "no object": lambda header: header.update(a=3),
    "metadata": lambda header: header.update(__metadata__={"a": 1}),
    "line": lambda header: header.update({"a\nb": header.pop("a")}),
    "long": lambda header: header.update({"a" * 100_000: header.pop("a")}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_headers(damage, tmp_path):
    header, data = small_files.header_and_data({"a": A, "b": B})
    DAMAGES[damage](header)
    small_files.save(tmp_path / WHOLE, header, data)
    fails(tmp_path, "is not a whole safetensors file|is no name for a tensor")


def test_damaged_files(tmp_path):
    header, data = small_files.header_and_data({"a": A, "b": B})
    small_files.save(tmp_path / WHOLE, header, data)
    whole = (tmp_path / WHOLE).read_bytes()
    for size in (0, 1, 7, 8, 9, 60, len(whole) - len(data), len(whole) - 1):
        (tmp_path / WHOLE).write_bytes(whole[:size])
        fails(tmp_path, "is not a whole safetensors file")
    (tmp_path / WHOLE).write_bytes(whole + b"x")
    fails(tmp_path, "is not a whole safetensors file")
    for length in (0, 1, 2**31, 2**63, 2**64 - 1):
        small_files.save(tmp_path / WHOLE, header, data, length=length)
        fails(tmp_path, "is not a whole safetensors file")
    for text in ("", "[]", "[" * 5000, '{"a": 1', '"\udcff"'.encode(errors="replace").decode()):
        small_files.save(tmp_path / WHOLE, text, data)
        fails(tmp_path, "is not a whole safetensors file")
