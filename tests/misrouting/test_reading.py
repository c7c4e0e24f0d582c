"""What the model read: against one prompt at a time, in any batch, with what it wrote."""

import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from moe_jax.errors import UserError
from moe_jax.misrouting import Prompt, TokenSubset
from moe_jax.misrouting.profile_data import ModelShape
from moe_jax.misrouting.reading import read
from moe_jax.misrouting.reading_tokens import tokenise, with_generated
from moe_jax.misrouting.recorded_readings import read_recorded, recorded
from moe_jax.models import generate, load_lm
from tests.misrouting import small_lm

TEXTS = ["1+2=\n", "33+4-5=\n", "9-9=\n", "Answer: 7", "12+34+5=\n"]
SHAPE = ModelShape("small", (0, 1), 8, 3)
PROMPTS = [Prompt(text, float(i % 2), "") for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_lm(small_lm.write(tmp_path_factory.mktemp("lm") / "model"))


def by_number(readings):
    found = {r.number: r for r in readings}
    return [found[i] for i in range(len(found))]


@pytest.mark.parametrize("batch_size", [2, 16])
def test_prompts_as_if_read_alone(lm, batch_size):
    readings = list(read(lm, PROMPTS, batch_size=batch_size))
    assert sorted(r.number for r in readings) == list(range(5))
    for r, text in zip(by_number(readings), TEXTS, strict=True):
        ids = lm.tokenizer.encode(text).ids
        if len(ids) != 5:  # of one length, so that little is compiled
            continue
        alone = lm.model(jnp.array([ids])).routing
        assert r.ids.tolist() == ids
        assert (r.text, "".join(r.pieces)) == (text, text)
        assert r.prompt_length == len(ids)
        assert r.where.all()
        np.testing.assert_array_equal(r.expert, alone.expert[0])
        np.testing.assert_allclose(r.weight, alone.weight[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(r.probs, alone.probs[0], rtol=1e-4, atol=1e-6)


def test_what_is_generated_is_read_too(lm):
    readings = by_number(
        read(lm, PROMPTS, generate_tokens=6, batch_size=5, subset=TokenSubset.parse("generated"))
    )
    prompts = [lm.tokenizer.encode(text).ids for text in TEXTS]
    found = generate(lm.model, prompts, max_new_tokens=6, stop_ids=lm.stop_ids)
    for r, text, ids, alone in zip(readings, TEXTS, prompts, found, strict=True):
        assert r.ids.tolist() == [*ids, *alone.ids[:-1]]
        assert r.prompt_length == len(ids)
        np.testing.assert_array_equal(r.where, (np.arange(len(r.ids)) >= len(ids)) & (r.ids > 1))
        np.testing.assert_array_equal(r.expert, alone.routing.expert)
        assert r.text == text + lm.tokenizer.decode(alone.ids.tolist())


def test_a_stop_text_ends_a_generation(lm):
    whole = by_number(read(lm, PROMPTS, generate_tokens=6))[0]
    stop = whole.text[len(TEXTS[0]) + 1]
    cut = by_number(read(lm, PROMPTS, generate_tokens=6, stop=stop))[0]
    assert len(cut.ids) < len(whole.ids)
    assert cut.text.endswith(stop)
    assert cut.ids.tolist() == whole.ids[: len(cut.ids)].tolist()


def test_special_tokens_and_subsets(lm):
    subset = TokenSubset.parse("after:Answer:")
    (r,) = read(lm, [Prompt("<begin>Answer: 7", 1.0, "")], subset=subset)
    assert r.pieces[:2] == ("<begin>", "A")
    assert [p for p, w in zip(r.pieces, r.where, strict=True) if w] == [" ", "7"]
    (r,) = read(lm, [Prompt("<begin>Answer: 7", 1.0, "")])
    assert r.where.tolist() == [False] + [True] * 9


def test_a_character_of_several_tokens_is_the_first_ones():
    byte = Tokenizer(models.BPE({c: i for i, c in enumerate("aÃ©b")}, []))
    byte.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte.decoder = decoders.ByteLevel()
    (prompt,) = tokenise(byte, [Prompt("a", 1.0, "")])
    whole = with_generated(prompt, np.array([1, 2, 3, 0], np.int32), byte)
    assert whole.text == "aéba"
    assert whole.ids.tolist() == [0, 1, 2, 3]
    assert [whole.text[a:b] for a, b in whole.offsets] == ["a", "é", "", "b"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"generate_tokens": -1}, "generate must be at least 0"),
        ({"batch_size": 0}, "batch_size at least 1"),
        ({"subset": "generated"}, "needs generate of at least 2, not 0"),
        ({"subset": "generated", "generate_tokens": 1}, "needs generate of at least 2, not 1"),
        ({"subset": "after:Answer:"}, "prompt 0: the text has no 'Answer:'"),
        ({"subset": "last:6"}, "prompt 0: the last 6 tokens are wanted, it has 5"),
        ({"generate_tokens": 60}, "prompt 0 has 5 tokens and 60 new ones: more than .* of 64"),
    ],
)
def test_what_can_not_be_read(lm, change, message):
    if "subset" in change:
        change = {**change, "subset": TokenSubset.parse(change["subset"])}
    with pytest.raises(UserError, match=message):
        next(read(lm, PROMPTS, **change))


def test_prompts_that_do_not_fit(lm):
    with pytest.raises(UserError, match="prompt 1 has 70 tokens: more than the model's context"):
        next(read(lm, [PROMPTS[0], Prompt("1" * 70, 1.0, "")]))
    with pytest.raises(UserError, match="prompt 0: no token follows the last 'Answer:'"):
        next(read(lm, [Prompt("Answer:", 1.0, "")], subset=TokenSubset.parse("after:Answer:")))


def test_a_dense_model_has_no_experts(tmp_path):
    dense = load_lm(small_lm.write(tmp_path / "dense", "llama"))
    with pytest.raises(UserError, match="this model has no experts"):
        next(read(dense, PROMPTS))


def test_progress_counts_prompts(lm):
    seen = []
    list(
        read(lm, PROMPTS, batch_size=2, on_progress=lambda done, total: seen.append((done, total)))
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
    seen.clear()
    list(
        read(
            lm,
            PROMPTS,
            batch_size=2,
            generate_tokens=2,
            on_progress=lambda done, total: seen.append(done),
        )
    )
    assert seen == sorted(seen)
    assert seen[-1] == 5
    assert any(0 < done < 2 for done in seen)


def test_recorded_routes_are_read_as_the_models_own(lm, tmp_path):
    mine = by_number(read(lm, PROMPTS))
    file = tmp_path / "routes.npz"
    np.savez(file, *(r.expert if i % 2 else r.expert[:-1] for i, r in enumerate(mine)))
    routes = read_recorded(str(file), SHAPE, 5)
    for own, r in zip(mine, recorded(routes, lm.tokenizer, PROMPTS), strict=True):
        n = len(r.ids)
        assert n == len(own.ids) - (1 - own.number % 2)
        np.testing.assert_array_equal(r.expert, own.expert[:n])
        assert (r.weight, r.probs, r.pieces) == (None, None, own.pieces[:n])


def test_routes_that_do_not_fit(lm, tmp_path):
    mine = by_number(read(lm, PROMPTS))
    with pytest.raises(UserError, match="prompt 0: routes of 3 tokens, the tokenizer makes 5"):
        list(recorded([r.expert[:3] for r in mine], lm.tokenizer, PROMPTS))
    with pytest.raises(UserError, match="routes of 1 prompts, and 5 prompts"):
        list(recorded([mine[0].expert], lm.tokenizer, PROMPTS))
    with pytest.raises(UserError, match=r"can't be read as \.npz"):
        read_recorded(str(tmp_path / "none.npz"), SHAPE, 5)
    np.save(tmp_path / "one.npy", mine[0].expert)
    with pytest.raises(UserError, match=r"can't be read as \.npz"):
        read_recorded(str(tmp_path / "one.npy"), SHAPE, 5)
    np.savez(tmp_path / "two.npz", mine[0].expert, mine[1].expert)
    with pytest.raises(UserError, match="holds 2 arrays for 5 prompts"):
        read_recorded(str(tmp_path / "two.npz"), SHAPE, 5)
    np.savez(tmp_path / "gap.npz", arr_0=mine[0].expert, arr_2=mine[1].expert)
    with pytest.raises(UserError, match=r"has no arr_1, but 2 arrays"):
        read_recorded(str(tmp_path / "gap.npz"), SHAPE, 2)
    np.savez(tmp_path / "wide.npz", mine[0].expert + 8)
    with pytest.raises(UserError, match="prompt 0: token 0, layer 0 has expert"):
        read_recorded(str(tmp_path / "wide.npz"), SHAPE, 1)


def test_arrays_that_are_numbered_are_taken_by_number(lm, tmp_path):
    mine = by_number(read(lm, PROMPTS))
    names = sorted(f"arr_{i}" for i in range(12))
    np.savez(tmp_path / "a.npz", **{name: mine[int(name[4:]) % 5].expert for name in names})
    for i, found in enumerate(read_recorded(str(tmp_path / "a.npz"), SHAPE, 12)):
        np.testing.assert_array_equal(found, mine[i % 5].expert)
    np.savez(tmp_path / "b.npz", arr_01=mine[0].expert, arr_00=mine[1].expert)
    for i, found in enumerate(read_recorded(str(tmp_path / "b.npz"), SHAPE, 2)):
        np.testing.assert_array_equal(found, mine[i].expert)


def _damaged(file, kind):
    data = bytearray(file.read_bytes())
    if kind == "cut":
        data = data[:-30]
    elif kind == "middle":
        data[len(data) // 3 : len(data) // 3 + 40] = bytes(40)
    elif kind == "method":
        for place in (8, data.rindex(b"PK\x01\x02") + 10):
            data[place] = 99
    elif kind == "encrypted":
        for place in (6, data.index(b"PK\x01\x02") + 8):
            data[place] |= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "kind", ["cut", "middle", "method", "encrypted", "empty", "objects", "huge"]
)
def test_files_that_are_damaged_are_one_line(tmp_path, kind):
    file, routes = tmp_path / "r.npz", np.random.default_rng(0).integers(0, 8, (40, 2, 3))
    if kind == "objects":
        np.savez(file, np.array([{"a": 1}, None], object))
    elif kind == "huge":
        header = {"descr": "<i8", "fortran_order": False, "shape": (2**60, 2, 3)}
        with zipfile.ZipFile(file, "w") as archive, archive.open("arr_0.npy", "w") as out:
            np.lib.format.write_array_header_1_0(out, header)
    elif kind == "empty":
        file.write_bytes(b"")
    else:
        np.savez_compressed(file, routes)
        _damaged(file, kind)
    with pytest.raises(UserError, match=r"^routes .*r\.npz: can't be read as \.npz: ") as caught:
        read_recorded(str(file), SHAPE, 1)
    assert "\n" not in str(caught.value)
