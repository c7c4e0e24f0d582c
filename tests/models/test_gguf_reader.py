"""GGUF files that are damaged, or say what can't be: one line each, and soon."""

import pathlib
import struct

import numpy as np
import pytest

from moe_jax.errors import UserError
from moe_jax.models.gguf_reader import read_whole

U8, U32, F32, STRING, ARRAY, U64 = 0, 4, 6, 8, 9, 10
HUGE = 2**40


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str | bytes, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    """What a file says of a tensor; its axes are in the order of GGUF."""
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def whole(
    keys: list[bytes],
    tensors: list[bytes],
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: int = 256,
) -> bytes:
    head = magic + struct.pack("<I", version)
    head += struct.pack("<QQ", *(counts or (len(tensors), len(keys))))
    head += b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(range(256))[:data]


KEY = key("general.name", STRING, text("x"))
FIRST, SECOND = tensor("a", [4, 2]), tensor("b", [3], offset=32)
NESTED = struct.pack("<IQ", ARRAY, 1) * 4_000 + struct.pack("<IQ", U8, 0)


def test_a_whole_file(tmp_path):
    (tmp_path / "m.gguf").write_bytes(whole([KEY], [FIRST, SECOND]))
    first, second = read_whole(tmp_path / "m.gguf").tensors
    assert (first.data.shape, second.data.shape) == ((2, 4), (3,))
    np.testing.assert_array_equal(second.data, np.frombuffer(bytes(range(32, 44)), np.float32))


HOSTILE = {
    "empty": b"",
    "magic": whole([KEY], [FIRST], magic=b"GGML"),
    "version": whole([KEY], [FIRST], version=99),
    "other byte order": whole([KEY], [FIRST], version=3 << 24),
    "count of keys": whole([KEY], [FIRST], counts=(1, HUGE)),
    "count of tensors": whole([KEY], [FIRST], counts=(HUGE, 1)),
    "all counts": whole([KEY], [FIRST], counts=(2**64 - 1, 2**64 - 1)),
    "numbers without end": whole([key("a", ARRAY, struct.pack("<IQ", U8, HUGE))], [FIRST]),
    "texts without end": whole([key("a", ARRAY, struct.pack("<IQ", STRING, HUGE))], [FIRST]),
    "a text without end": whole([key("a", STRING, struct.pack("<Q", 2**63))], [FIRST]),
    "arrays in arrays": whole([key("a", ARRAY, NESTED)], [FIRST]),
    "kind of a key": whole([key("a", 77, b"")], [FIRST]),
    "kind of an array": whole([key("a", ARRAY, struct.pack("<IQ", 77, 1))], [FIRST]),
    "key twice": whole([KEY, KEY], [FIRST]),
    "key that isn't UTF-8": whole([key(b"\xff\xfe", U8, b"1")], [FIRST]),
    "alignment of 0": whole([key("general.alignment", U32, struct.pack("<I", 0))], [FIRST]),
    "alignment of 3": whole([key("general.alignment", U32, struct.pack("<I", 3))], [FIRST]),
    "alignment as a text": whole([key("general.alignment", STRING, text("32"))], [FIRST]),
    "kind of a tensor": whole([KEY], [tensor("a", [4, 2], kind=999)]),
    "rows that are no blocks": whole([KEY], [tensor("a", [4, 2], kind=8)]),
    "tensor twice": whole([KEY], [FIRST, tensor("a", [3], offset=32)]),
    "tensor that isn't UTF-8": whole([KEY], [tensor(b"\xff", [4])]),
    "tensor of two lines": whole([KEY], [tensor("a\nb", [4])]),
    "axes without end": whole([KEY], [text("a") + struct.pack("<I", 2**32 - 1)]),
    "experts without values": whole([KEY], [tensor("a", [4, 0, 2**31])]),
    "size beyond the file": whole([KEY], [tensor("a", [4, 200])]),
    "size beyond all numbers": whole([KEY], [tensor("a", [2**32, 2**32])]),
    "place beyond the file": whole([KEY], [tensor("a", [4], offset=4096)]),
    "place before the file": whole([KEY], [tensor("a", [4], offset=2**64 - 32)]),
    "one over the other": whole([KEY], [FIRST, tensor("b", [3])]),
    "a gap": whole([KEY], [FIRST, tensor("b", [3], offset=64)]),
}


def fails(file: pathlib.Path) -> str:
    with pytest.raises(UserError) as caught:
        read_whole(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name, tmp_path):
    (tmp_path / "m.gguf").write_bytes(HOSTILE[name])
    fails(tmp_path / "m.gguf")


def test_files_cut_anywhere(tmp_path):
    raw = whole([KEY, key("n", U64, bytes(8))], [FIRST, SECOND], data=44)
    for size in range(len(raw)):
        (tmp_path / "m.gguf").write_bytes(raw[:size])
        fails(tmp_path / "m.gguf")


def test_the_message_says_what_is_wrong(tmp_path):
    for name, words in (
        ("one over the other", "b begins at byte 160, where the tensors before it end at 192"),
        ("numbers without end", "bytes, and asks for those up to"),
    ):
        (tmp_path / "m.gguf").write_bytes(HOSTILE[name])
        assert words in fails(tmp_path / "m.gguf")
