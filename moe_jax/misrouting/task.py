"""Graded arithmetic as a Task: its texts, its loss, how it is judged and saved."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from moe_jax import losses
from moe_jax.common.files import read_object, write_atomically
from moe_jax.common.schema import first_difference, to_json
from moe_jax.data.batches import batches
from moe_jax.errors import UserError
from moe_jax.gating import Routing
from moe_jax.misrouting import arithmetic, arithmetic_texts
from moe_jax.misrouting.config import MisroutingConfig
from moe_jax.misrouting.prompts import Prompt, write_prompts
from moe_jax.models.causal_config import CausalConfig
from moe_jax.models.causal_families import read_causal_config, write_causal_config
from moe_jax.models.causal_lm import CausalLM
from moe_jax.models.causal_pretrained import load_lm, save_lm
from moe_jax.models.generate import generate
from moe_jax.training.mesh import batch_axes
from moe_jax.training.task import Batch, Batches, Task

_TOGETHER = 256  # prompts continued together
_RESULT = "arithmetic.json"


class ArithmeticTask(Task):
    """Next-token prediction of explanations and answers, judged on prompts kept apart.

    Args:
      config: validated here.

    Raises:
      UserError: a bad config.
    """

    def __init__(self, config: MisroutingConfig):
        config.validate()
        self.config = config
        self._last: tuple[nnx.Module, dict[str, float]] | None = None

    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model with random parameters."""
        return CausalLM(self.config.model, rngs=rngs)

    def prepare(self, model: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        """The weights of `config.start`, if there is one.

        Raises:
          UserError: it can't be loaded, or it has another shape or other tokens.
        """
        del rngs
        if not self.config.start:
            return model
        theirs = load_lm(self.config.start, dtype=self.config.model.dtype, param_dtype="float32")
        _check_same_model(self.config, theirs.config, theirs.tokenizer.get_vocab())
        nnx.update(model, nnx.state(theirs.model))
        return model

    def loss(
        self, model: nnx.Module, batch: Batch, rngs: nnx.Rngs
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Cross entropy of the tokens to predict, their mean, and the weighted router losses."""
        del rngs
        ids, where = jnp.asarray(batch["ids"]), jnp.asarray(batch["where"])
        target = jnp.asarray(batch["target"])[:, 1:]
        out = model(ids[:, :-1], where[:, :-1])
        entropy = optax.softmax_cross_entropy_with_integer_labels(out.logits, ids[:, 1:])
        right = jnp.argmax(out.logits, axis=-1) == ids[:, 1:]
        means = {
            "cross_entropy": _mean_over_batch(entropy, target),
            "token_accuracy": _mean_over_batch(right.astype(jnp.float32), target),
            **_router_terms(out.routing, where[:, :-1]),
        }
        total = means["cross_entropy"] + self.config.balance * means["balance"]
        return total + self.config.router_z * means["router_z"], means

    def train_data(self, part: tuple[int, int] = (0, 1)) -> Batches:
        """Endless shuffled batches of padded texts."""
        return batches(
            self._texts._asdict(),
            batch_size=self.config.batch_size,
            seed=self.config.train.seed,
            part=part,
        )

    def batch_like(self) -> Batch:
        """Shapes of a batch: no text is drawn."""
        shape = self.config.batch_size, self.config.data.longest
        return {
            "ids": jax.ShapeDtypeStruct(shape, jnp.int32),
            "where": jax.ShapeDtypeStruct(shape, jnp.bool_),
            "target": jax.ShapeDtypeStruct(shape, jnp.bool_),
        }

    def evaluate(self, model: nnx.Module) -> dict[str, float]:
        """Figures of the held-out prompts, continued greedily.

        "accuracy/2", "explanation/2": shares of level 2 whose answer, or whole explanation, is
        right; "accuracy", "explanation": of all. "given/true": share of right answers after the
        right explanation; "given/other/question" and "given/other/explanation": after another
        question's explanation, shares of answers that follow the one or the other.
        "max_load", "dead": largest share of a layer's choices that one expert has (1 / number of
        experts is even), and experts with less than a tenth of the even share, all layers.
        """
        if self._last is None or self._last[0] is not model:
            self._last = model, _figures(model, self.prompts, self.config)
        return dict(self._last[1])

    def report(self, model: nnx.Module, workdir: Path) -> None:
        """The folder `model` (as `load_lm` reads it), prompts.jsonl and arithmetic.json."""
        model = _language_model(model)
        tokenizer, stop_ids = arithmetic_texts.tokenizer(), (arithmetic_texts.END_ID,)
        folder = workdir / "model"
        save_lm(model, folder, tokenizer=tokenizer, stop_ids=stop_ids, replace=True)
        write_prompts(self.prompts, workdir / "prompts.jsonl")
        write_atomically(workdir / _RESULT, json.dumps(self.evaluate(model), indent=2) + "\n")

    def show(self, workdir: Path) -> bool:
        """A table of the levels, as `report` left them."""
        from rich.console import Console

        stored = workdir / _RESULT
        if not stored.exists():
            return False
        figures = read_object(stored)
        try:
            _print(figures, Console())
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{stored}: not the figures of a run ({type(error).__name__}: {error}); "
                f"launch/evaluate.py --workdir={workdir} makes it again"
            ) from None
        return True

    @functools.cached_property
    def prompts(self) -> list[Prompt]:
        """Held-out prompts, easiest level first."""
        return arithmetic.held_out(self.config.data)

    @functools.cached_property
    def _texts(self) -> arithmetic_texts.Texts:
        return arithmetic_texts.texts(self.config.data)


def _mean_over_batch(values: Float[Array, "b s"], where: Bool[Array, "b s"]) -> Float[Array, ""]:
    """Sum / number of tokens on a device, the number being the mean over the devices.

    So the mean of what the devices give is the mean over all tokens of the batch.
    """
    count = jnp.sum(where).astype(jnp.float32)
    if batch_axes():
        count = jax.lax.pmean(count, batch_axes())
    return jnp.sum(jnp.where(where, values, 0)) / jnp.maximum(count, 1)


def _router_terms(routing: Routing, where: Bool[Array, "b s"]) -> dict[str, Float[Array, ""]]:
    """Balance and z-loss, means over the layers."""
    mine = where.reshape(-1)
    layers = routing.probs.shape[2]
    balance, z = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
    for layer in range(layers):
        probs, expert, logits = (
            a[:, :, layer].reshape(mine.shape[0], -1)
            for a in (routing.probs, routing.expert, routing.logits)
        )
        balance += losses.switch_balance(probs, expert, where=mine, axis_name=batch_axes())
        z += _mean_over_batch(losses.router_z(logits, where=mine)[None], mine[None])
    return {"balance": balance / layers, "router_z": z / layers}


def _figures(
    model: nnx.Module, prompts: Sequence[Prompt], config: MisroutingConfig
) -> dict[str, float]:
    """What `ArithmeticTask.evaluate` gives."""
    most = config.data.most_new
    found = _continued(model, [p.text for p in prompts], most)
    written = [arithmetic_texts.split(text) for text, _ in found]
    right = {
        "accuracy": np.array([w[1] == p.answer for w, p in zip(written, prompts, strict=True)]),
        "explanation": np.array(
            [w[0] == p.explanation for w, p in zip(written, prompts, strict=True)]
        ),
    }
    level = np.array([int(p.difficulty) for p in prompts])
    figures = {
        f"{name}/{i}": float(values[level == i].mean())
        for name, values in right.items()
        for i in range(1, config.data.levels + 1)
    }
    figures |= {name: float(values.mean()) for name, values in right.items()}
    return figures | _given(model, prompts) | _loads([counts for _, counts in found])


def _given(model: nnx.Module, prompts: Sequence[Prompt]) -> dict[str, float]:
    """What the answer follows where an explanation is given, its own or another prompt's."""
    level, place = np.array([p.difficulty for p in prompts]), np.arange(len(prompts))
    for mine in (np.flatnonzero(level == i) for i in np.unique(level)):
        place[mine] = np.roll(mine, -1)
    others = [prompts[int(i)] for i in place]

    def answers(explained: Sequence[Prompt]) -> list[str]:
        texts = [
            f"{p.text}{e.explanation}{arithmetic_texts.DELIMITER}"
            for p, e in zip(prompts, explained, strict=True)
        ]
        longest = max(len(p.answer) for p in prompts)
        found = _continued(model, texts, longest + 1)
        return [arithmetic_texts.split(arithmetic_texts.DELIMITER + text)[1] for text, _ in found]

    own = np.array([a == p.answer for a, p in zip(answers(prompts), prompts, strict=True)])
    trios = list(zip(answers(others), prompts, others, strict=True))
    apart = [(a, p.answer, o.answer) for a, p, o in trios if p.answer != o.answer]
    figures = {"given/true": float(own.mean())}
    if apart:
        figures["given/other/question"] = float(np.mean([a == p for a, p, _ in apart]))
        figures["given/other/explanation"] = float(np.mean([a == o for a, _, o in apart]))
    return figures


def _language_model(model: nnx.Module) -> CausalLM:
    if not isinstance(model, CausalLM):
        raise ValueError(f"model is a {type(model).__name__}, must be a CausalLM")
    return model


def _continued(
    model: nnx.Module, texts: Sequence[str], most: int
) -> list[tuple[str, Int[np.ndarray, "l e"]]]:
    """What the model writes after each text, greedily, and how often it chose each expert."""
    model, made = _language_model(model), arithmetic_texts.tokenizer()
    experts = model.config.experts
    count = 0 if experts is None else experts.gate.num_experts
    found = []
    for start in range(0, len(texts), _TOGETHER):
        ids = [e.ids for e in made.encode_batch(list(texts[start : start + _TOGETHER]))]
        for out in generate(
            model, ids, max_new_tokens=most, stop_ids=(arithmetic_texts.END_ID,), pad_id=0
        ):
            chosen = np.zeros((0, 1, 1), int) if out.routing is None else out.routing.expert
            counts = [
                np.bincount(chosen[:, i].reshape(-1), minlength=count + 1)[:count]
                for i in range(chosen.shape[1])
            ]
            found.append((made.decode(out.content.tolist()), np.stack(counts)))
    return found


def _loads(counts: Sequence[Int[np.ndarray, "l e"]]) -> dict[str, float]:
    """The largest share of a layer's choices that one expert has, and experts with few."""
    total = np.sum(counts, axis=0)
    share = total / np.maximum(total.sum(axis=1, keepdims=True), 1)
    return {
        "max_load": float(share.max()),
        "dead": float((share < 0.1 / share.shape[1]).sum()),
    }


def _check_same_model(
    config: MisroutingConfig, theirs: CausalConfig, tokens: Mapping[str, int]
) -> None:
    """A UserError that names the first thing in which the model at `config.start` differs."""
    raw, _ = write_causal_config(config.model)
    ours, _ = read_causal_config(raw, "model")
    all_sparse = len(ours.expert_layers) == ours.num_layers
    theirs = dataclasses.replace(
        theirs, dtype=ours.dtype, d_ff=ours.d_ff if all_sparse else theirs.d_ff
    )
    found = first_difference(to_json(theirs), to_json(ours), "model")
    if found is not None:
        name, their, our = found
        raise UserError(f"start={config.start}: has {name}={their}, this run {our}")
    if dict(tokens) != {token: i for i, token in enumerate(arithmetic_texts.VOCABULARY)}:
        raise UserError(
            f"start={config.start}: its tokenizer has other tokens than arithmetic's "
            f"{len(arithmetic_texts.VOCABULARY)}"
        )


def _print(figures: Mapping[str, float], console: Any) -> None:
    """Levels as rows, then what the answers follow."""
    from moe_jax.reports.page import Column
    from moe_jax.reports.terminal import show_table

    levels = [name.split("/")[1] for name in figures if name.startswith("accuracy/")]
    names = [*levels, "all"]
    cells = [figures[f"accuracy/{i}"] for i in levels] + [figures["accuracy"]]
    explained = [figures[f"explanation/{i}"] for i in levels] + [figures["explanation"]]
    table: list[tuple[str, float, float]] = list(zip(names, cells, explained, strict=True))
    show_table(
        console,
        "Held-out prompts, share that is right",
        [Column("steps", number=False), Column("answer"), Column("explanation")],
        table,
    )
    rows = {
        "given/true": "the right explanation given: answer right",
        "given/other/question": "another explanation given: answer follows the question",
        "given/other/explanation": "another explanation given: answer follows the explanation",
        "max_load": "largest share of a layer's choices that one expert has",
        "dead": "experts with less than a tenth of the even share",
    }
    show_table(
        console,
        "What answers follow, and how experts are used",
        [Column("figure", number=False), Column("value")],
        [[text, figures[name]] for name, text in rows.items() if name in figures],
    )
