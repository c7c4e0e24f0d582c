"""Token states of windows against one plain call of a small encoder for each window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_jax.errors import UserError
from moe_jax.models import Tokenised, pretrained, tokenise
from moe_jax.models.tokenizer import special_ids
from moe_jax.rationale import ContextConfig
from moe_jax.rationale import contextualise as module
from moe_jax.rationale.contextualise import contextualise, pieces
from moe_jax.rationale.windows import spans
from tests.models import small_encoders

TEXTS = ["a b ca d e f ga b c d j", "", "h", "ab cd ef gh i j aa", "j i h g"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A random BERT with 24 positions."""
    folder = tmp_path_factory.mktemp("encoder") / "bert"
    return pretrained.load_encoder(
        str(small_encoders.write(folder, small_encoders.CONFIGS["bert"]))
    )


@pytest.fixture(scope="module")
def tokens(small):
    found = tokenise(small.tokenizer, TEXTS)
    assert max(len(i) for i in found.ids) > 8
    return found


def _window_mean(states):
    mean = states.astype(np.float64).mean(axis=0)
    return mean / np.linalg.norm(mean)


def _slow(small, tokens, config):
    """States and targets, one window after the other."""
    prefix, suffix = special_ids(small.tokenizer)

    def encoded(ids):
        return small_encoders.states(small, [*prefix, *ids, *suffix])

    found = []
    for ids in tokens.ids:
        scales = []
        for width in config.windows:
            windows = []
            for a, b in spans(len(ids), width, config.stride):
                states = encoded(ids[a:b])
                inner = states[len(prefix) : len(prefix) + b - a]
                windows.append((a, b, _window_mean(states), inner))
            rows = []
            for i in range(len(ids)):
                here = [w for w in windows if w[0] <= i < w[1]]
                own = [w[2] if config.pool == "window" else w[3][i - w[0]] for w in here]
                rows.append(np.mean(own, axis=0))
            scales.append(rows)
        found.append(np.mean(scales, axis=0).reshape(len(ids), small.config.d_model))
    return found, np.stack([_window_mean(encoded(ids)) for ids in tokens.ids])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.one_of(st.just(0), st.integers(2, 20)), st.data())
def test_every_token_is_in_a_window_that_fits(num_tokens, width, data):
    stride = data.draw(st.integers(1, max(width, 1)))
    found = spans(num_tokens, width, stride)
    held = np.zeros(num_tokens, int)
    for start, stop in found:
        assert 0 <= start <= stop <= num_tokens
        assert start < stop or num_tokens == 0
        assert width == 0 or stop - start <= width
        held[start:stop] += 1
    assert (held > 0).all()
    assert len({tuple(w) for w in found}) == len(found)


def test_width_zero_is_the_whole_text():
    np.testing.assert_array_equal(spans(9, 0, 3), [[0, 9]])


def test_windows_of_a_short_text_by_hand():
    np.testing.assert_array_equal(spans(5, 4, 2), [[0, 2], [0, 4], [2, 5], [3, 5]])


@pytest.mark.parametrize(
    "config",
    [
        ContextConfig(windows=(6,), stride=2, pool="window"),
        ContextConfig(windows=(4, 0), stride=3, pool="token"),
    ],
    ids=["window", "token"],
)
def test_states_are_those_of_the_windows_alone(small, tokens, config):
    states, targets = _slow(small, tokens, config)
    calls = []
    found = contextualise(small, tokens, config, progress=lambda done, of: calls.append((done, of)))
    assert [x.shape for x in found.states] == [x.shape for x in states]
    for got, want in zip(found.states, states, strict=True):
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, want, atol=2e-3, rtol=2e-3)
    np.testing.assert_allclose(found.targets, targets, atol=1e-5)
    assert calls[-1][0] == calls[-1][1]


def test_a_layer_can_be_chosen(small, tokens):
    first, last, named = (
        contextualise(small, tokens, ContextConfig(windows=(0,), layer=layer, pool="token"))
        for layer in (0, -1, small.config.num_layers)
    )
    np.testing.assert_array_equal(last.states[0], named.states[0])
    assert not np.allclose(first.states[0], last.states[0], atol=0.1)
    np.testing.assert_array_equal(first.targets, last.targets)  # e(x) is always of the last
    with pytest.raises(UserError, match=r"context\.layer=7"):
        contextualise(small, tokens, ContextConfig(layer=7))


def test_cache_gives_the_same_arrays_without_the_encoder(small, tokens, tmp_path, monkeypatch):
    config = ContextConfig(windows=(4,), stride=2, cache=str(tmp_path / "new"))
    made = contextualise(small, tokens, config)
    (file,) = (tmp_path / "new").iterdir()

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(module, "_encoded", never)
    read = contextualise(small, tokens, config)
    for one, other in zip(made.states, read.states, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(made.targets, read.targets)
    assert list((tmp_path / "new").iterdir()) == [file]
    for other in (
        ContextConfig(windows=(4,), stride=3, cache=config.cache),
        ContextConfig(windows=(4,), stride=2, pool="token", cache=config.cache),
        ContextConfig(windows=(4,), stride=2, layer=1, cache=config.cache),
    ):
        with pytest.raises(AssertionError, match="computed again"):
            contextualise(small, tokens, other)
    shorter = Tokenised(tokens.ids[:-1], tokens.offsets[:-1])
    with pytest.raises(AssertionError, match="computed again"):
        contextualise(small, shorter, config)


DAMAGE = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "no archive": lambda data: b"not an archive",
    "flipped": lambda data: data[:200] + bytes(x ^ 255 for x in data[200:260]) + data[260:],
}


@pytest.mark.parametrize("how", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_computed_again(small, tokens, tmp_path, how):
    config = ContextConfig(windows=(4,), stride=2, cache=str(tmp_path))
    made = contextualise(small, tokens, config)
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    file.write_bytes(how(good))
    again = contextualise(small, tokens, config)
    np.testing.assert_array_equal(np.concatenate(again.states), np.concatenate(made.states))
    np.testing.assert_array_equal(again.targets, made.targets)
    assert module._read(file, [len(i) for i in tokens.ids]) is not None  # and put in its place


def test_a_cache_folder_that_is_a_file_is_named(small, tokens, tmp_path):
    (tmp_path / "file").write_text("x")
    config = ContextConfig(windows=(4,), stride=2, cache=str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"context\.cache"):
        contextualise(small, tokens, config)


def test_what_the_encoder_cannot_take_is_refused(small, tokens):
    with pytest.raises(UserError, match=r"context\.windows=\(23,\).*22 tokens"):
        contextualise(small, tokens, ContextConfig(windows=(23,)))
    long = tokenise(small.tokenizer, ["a " * 23])
    with pytest.raises(UserError, match=r"context\.max_tokens=256.*22 tokens"):
        contextualise(small, long, ContextConfig(windows=(4,)))


def test_pieces_keep_order_and_offsets(small):
    texts = ["a b c d e f g", "", "ab cd"]
    tokens = tokenise(small.tokenizer, texts)
    found, owner = pieces(tokens, 3)
    assert owner.tolist() == sorted(owner.tolist())
    assert set(owner.tolist()) == {0, 1, 2}
    assert all(len(i) <= 3 for i in found.ids)
    for text in range(3):
        mine = np.flatnonzero(owner == text)
        np.testing.assert_array_equal(
            np.concatenate([found.ids[i] for i in mine]), tokens.ids[text]
        )
        np.testing.assert_array_equal(
            np.concatenate([found.offsets[i] for i in mine]), tokens.offsets[text]
        )
    sizes = [len(found.ids[i]) for i in np.flatnonzero(owner == 0)]
    assert max(sizes) - min(sizes) <= 1  # nearly equal
    assert (owner == 1).sum() == 1
    np.testing.assert_array_equal(pieces(tokens, 100)[1], [0, 1, 2])
