"""Prompts read by a Switch Transformer: its encoder's routes, or those of what its decoder wrote."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.errors import UserError
from moe_jax.misrouting import Prompt, TokenSubset
from moe_jax.misrouting.collect import collect
from moe_jax.misrouting.profile_data import ModelShape
from moe_jax.misrouting.readers import make_reader
from moe_jax.misrouting.reading import read
from moe_jax.models import generate_switch, load_language_model
from tests.misrouting import small_lm, small_switch_lm

TEXTS = ["1+2=", "33+4-5=", "9-9=", "Answer: 7", "12+34+5="]
PROMPTS = [Prompt(text, float(i % 2), "") for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_language_model(
        small_switch_lm.write(tmp_path_factory.mktemp("lm") / "model", seed=3)
    )


def by_number(readings):
    found = {r.number: r for r in readings}
    return [found[i] for i in range(len(found))]


@pytest.mark.parametrize("batch_size", [2, 16])
def test_the_encoder_reads_prompts_as_if_alone(lm, batch_size):
    readings = by_number(read(lm, PROMPTS, batch_size=batch_size))
    for r, text in zip(readings, TEXTS, strict=True):
        ids = lm.tokenizer.encode(text).ids
        assert r.ids.tolist() == ids
        assert (r.text, r.pieces[-1], "".join(r.pieces[:-1])) == (text, "</s>", text)
        assert r.where.tolist() == [True] * len(text) + [False]
    ids = lm.tokenizer.encode(TEXTS[0]).ids
    alone = lm.model.encode(jnp.array([ids])).routing
    np.testing.assert_array_equal(readings[0].expert, alone.expert[0])
    np.testing.assert_allclose(readings[0].weight, alone.weight[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(readings[0].probs, alone.probs[0], rtol=1e-4, atol=1e-6)


def test_dropped_tokens_are_a_category_of_their_own(lm):
    """4 experts with room for 2 tokens each: of 9 characters and the end at least 2 find none."""
    shape = ModelShape("switch", (0,), 4, 1)
    readings = by_number(read(lm, PROMPTS))
    found = collect(readings, PROMPTS, shape, kind="selection")
    for i, r in enumerate(readings):
        dropped = np.mean(r.expert[r.where, 0, 0] == 4)
        np.testing.assert_allclose(found.dropped[i, 0], dropped)
        np.testing.assert_allclose(found.rate[i, 0].sum() + dropped, 1)
    assert found.dropped[3, 0] > 0


def test_the_decoder_reads_what_it_writes(lm):
    readings = by_number(
        read(lm, PROMPTS, generate_tokens=6, subset=TokenSubset.parse("generated"))
    )
    sources = [lm.tokenizer.encode(text).ids for text in TEXTS]
    found = generate_switch(lm.model, sources, max_new_tokens=6)
    assert max(len(one.ids) for one in found) > 3
    for r, one in zip(readings, found, strict=True):
        assert r.ids.tolist() == [0, *one.ids[:-1]]
        assert r.prompt_length == 1
        assert r.pieces[0] == "<pad>"
        assert r.where.tolist() == [False, *(one.ids[:-1] > 1)]
        np.testing.assert_array_equal(r.expert, one.decoder_routing.expert)
        assert r.text == lm.tokenizer.decode(one.ids.tolist())


def test_a_stop_text_ends_what_it_writes(lm):
    whole = by_number(read(lm, PROMPTS, generate_tokens=6))
    row = max(range(5), key=lambda i: len(whole[i].text))
    stop = whole[row].text[1]
    cut = by_number(read(lm, PROMPTS, generate_tokens=6, stop=stop))[row]
    assert cut.text == whole[row].text[: whole[row].text.index(stop) + 1]
    seen = []
    list(read(lm, PROMPTS[:2], generate_tokens=6, on_progress=lambda done, _: seen.append(done)))
    assert seen == sorted(seen)
    assert 0 < seen[1] < 2 == seen[-1]


def test_names_and_layers_of_the_two_stacks(tmp_path):
    folder = small_switch_lm.write(tmp_path / "model", "sparse encoder, dense decoder")
    mixed = load_language_model(folder)
    encoder = make_reader(mixed, writes=False)
    assert encoder.name == f"{folder} (encoder)"
    assert (encoder.expert_layers, encoder.num_layers) == ((1,), mixed.config.num_layers)
    assert encoder.gate.num_experts == 3
    with pytest.raises(UserError, match=r"its decoder has no experts.*: leave out generate"):
        make_reader(mixed, writes=True)
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        make_reader(mixed._replace(tokenizer=None), writes=False)


def test_a_decoder_only_model_has_one_name(tmp_path):
    folder = small_lm.write(tmp_path / "olmoe")
    causal = load_language_model(folder)
    readers = [make_reader(causal, writes=writes) for writes in (False, True)]
    assert {reader.name for reader in readers} == {str(tmp_path / "olmoe")}
    assert (readers[0].expert_layers, readers[0].num_layers) == ((0, 1), 2)


def test_an_unknown_architecture_names_those_of_both_kinds(tmp_path):
    folder = small_lm.write(tmp_path / "olmoe")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(
        UserError, match=r"'gpt2' is not covered; covered are .*olmoe.*switch_transformers"
    ):
        load_language_model(folder)
