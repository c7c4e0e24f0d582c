"""The rationale model as a Task: its data, its losses, how it is judged and shown."""

import functools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from moe_jax import losses
from moe_jax.data.batches import batches, pad_stack
from moe_jax.data.corpus import Corpus, Example, load_corpus, token_labels
from moe_jax.errors import UserError
from moe_jax.models.bert import Encoder
from moe_jax.models.encode import Tokenised, tokenise
from moe_jax.models.pretrained import Pretrained, load
from moe_jax.models.tokenizer import special_ids
from moe_jax.rationale.config import RationaleConfig
from moe_jax.rationale.contextualise import Contextual, contextualise, pieces, window_states
from moe_jax.rationale.initialise import spherical_kmeans, word_evidence
from moe_jax.rationale.model import RationaleModel, RationaleOutput
from moe_jax.rationale.results import Assessment, TextRationale
from moe_jax.training.task import Batch, Task

_START_TOKENS = 30_000  # states that the start of the gate is found on
_ROWS = 64  # texts at once outside training
_NUM_SCORED = 100  # test texts whose comprehensiveness and sufficiency are measured


class TrainedAlong(nnx.Module):
    """The rationale model with its encoder: `context.train_encoder`."""

    def __init__(self, encoder: Encoder, model: RationaleModel):
        self.encoder, self.model = encoder, model


class RationaleTask(Task):
    """Seed 000's objective on a corpus, with a frozen encoder or one that is trained along.

    Args:
      config: validated here.
      pretrained: the encoder; None loads `config.context.encoder`.

    Raises:
      UserError: a bad config; the encoder can't be loaded.
    """

    def __init__(self, config: RationaleConfig, pretrained: Pretrained | None = None):
        config.validate()
        self.config = config
        self.pretrained = pretrained or load(config.context.encoder)
        prefix, suffix = special_ids(self.pretrained.tokenizer)
        self._special = {"prefix": tuple(prefix), "suffix": tuple(suffix)}
        self._last: tuple[nnx.Module, Assessment] | None = None

    # Task

    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model with random parameters; an encoder trained along starts as it was loaded."""
        width = self.pretrained.config.d_model
        words = self.pretrained.config.vocab_size
        model = RationaleModel(self.config.model, width, width, words, rngs=rngs)
        if not self.config.context.train_encoder:
            return model
        return TrainedAlong(nnx.clone(self.pretrained.model), model)

    def prepare(self, model: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        """Means from the training texts; the gate's start: k-means on their states, then words."""
        inner = _inner(model)
        context = self._contexts[0]
        states = np.concatenate(context.states).astype(np.float32)
        inner.state_mean_d[...] = jnp.asarray(states.mean(axis=0, dtype=np.float64), jnp.float32)
        inner.target_mean_d[...] = jnp.asarray(context.targets.mean(axis=0))
        if self.config.model.start == "kmeans":
            seed = int(jax.random.bits(rngs.params(), (), jnp.uint32))
            rows = np.random.default_rng(seed).permutation(len(states))[:_START_TOKENS]
            x = jnp.asarray(states[np.sort(rows)])[None]
            h = inner.standardised(x, jnp.ones(x.shape[:2], bool))[0]
            centres = spherical_kmeans(
                np.asarray(h),
                self.config.model.num_factors,
                seed=seed,
                restarts=self.config.model.restarts,
            )
            inner.gate.w_de[...] = jnp.asarray(centres.T)
            self._weigh_words(model)
        return model

    def _weigh_words(self, model: nnx.Module) -> None:
        """The gate's weights of words, from its own assignment of the training tokens."""
        table, config = _inner(model).words_ve, self.config.model
        if table is None:
            return
        tokens = self._tokens[0][0]
        for _ in range(config.word_rounds):
            probs, _ = self._outputs(model, tokens, self._states(0))
            evidence = word_evidence(
                np.concatenate(tokens.ids), np.concatenate(probs), table[...].shape[0]
            )
            table[...] = jnp.asarray(config.words * evidence)

    def loss(
        self, model: nnx.Module, batch: Batch, rngs: nnx.Rngs
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The six losses, weighted; each of them by name in the metrics."""
        del rngs
        where = jnp.asarray(batch["where"])
        out = self._forward(model, batch)
        terms = {
            "sentence": losses.sentence_reconstruction(batch["target"], out.predicted),
            "entropy": losses.entropy(out.probs, where=where),
            "overlap": losses.overlap(out.probs, where=where),
            "diversity": losses.diversity(out.factors),
            "balance": losses.load_balance(out.probs, where=where, over="batch"),
        }
        if out.decoded is not None:
            terms["token"] = losses.token_reconstruction(out.states, out.decoded, where=where)
        total, means = losses.objective(terms, self.config.losses)
        return total, means

    def train_data(self) -> grain.DatasetIterator:
        """Endless shuffled batches of padded texts."""
        context, tokens = self._contexts[0], self._tokens[0][0]
        length = max(1, max(len(i) for i in tokens.ids))
        ids, where = pad_stack(tokens.ids, length)
        arrays = {"ids": ids, "where": where, "target": context.targets}
        if not self.config.context.train_encoder:
            arrays["states"] = pad_stack(context.states, length)[0]
        return batches(arrays, batch_size=self.config.batch_size, seed=self.config.train.seed)

    def evaluate(self, model: nnx.Module) -> dict[str, float]:
        """Figures of the test part by name; {} where there is no test part."""
        from moe_jax.rationale.assess import flat

        if not self.corpus.test:
            return {}
        return flat(self.assessment(model))

    def report(self, model: nnx.Module, workdir: Path) -> None:
        """report.html and assessment.json in `workdir`."""
        from moe_jax.rationale.report import write_report
        from moe_jax.training.workdir import to_json

        history = []
        if (workdir / "metrics.jsonl").exists():
            lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            history = [json.loads(line) for line in lines]
        write_report(
            self.assessment(model),
            history,
            workdir / "report.html",
            title="Which factor took which word",
            config_text=json.dumps(to_json(self.config), indent=2),
        )

    def show(self, workdir: Path) -> bool:
        """The figures beside the baselines and some coloured sentences, as `report` left them."""
        from rich.console import Console

        from moe_jax.rationale.assess import from_json
        from moe_jax.rationale.report import print_summary

        stored = workdir / "assessment.json"
        if not stored.exists():
            return False
        print_summary(from_json(json.loads(stored.read_text(encoding="utf-8"))), Console())
        return True

    # What a trained model says about texts

    def rationales(
        self, model: nnx.Module, texts: Sequence[str] | Sequence[Example]
    ) -> list[TextRationale]:
        """Which factor took each token of each text.

        Args:
          model: as trained or restored; nothing else is needed, least of all the corpus.
          texts: strings, or examples (whose spans give the gold labels).
        """
        examples = [Example(text) if isinstance(text, str) else text for text in texts]
        tokens, owner = self._pieces([e.text for e in examples])
        states = None if self.config.context.train_encoder else self._contextualise(tokens).states
        return self._rationales(model, examples, tokens, owner, states)

    def assessment(self, model: nnx.Module) -> Assessment:
        """Everything measured on the test part (on the training part if there is none)."""
        from moe_jax.rationale.assess import assess

        if self._last is not None and self._last[0] is model:
            return self._last[1]
        parts = [self.corpus.train, self.corpus.test or self.corpus.train]
        which = [0, 1 if self.corpus.test else 0]
        found = [
            self._rationales(model, part, *self._tokens[i], self._states(i))
            for part, i in zip(parts, which, strict=True)
        ]
        states: list[list[np.ndarray] | None] = [None, None]
        if self.config.baselines:
            states = [_joined(self._contexts[i].states, self._tokens[i][1]) for i in which]
        result = assess(
            found[0],
            found[1],
            list(self.corpus.labels),
            train_states=states[0],
            test_states=states[1],
            score=functools.partial(self._cosines, model, which[1]),
            seed=self.config.train.seed,
            num_scored=_NUM_SCORED,
        )
        self._last = model, result
        return result

    # The texts, worked through once

    @functools.cached_property
    def corpus(self) -> Corpus:
        """The texts of `config.data`."""
        return load_corpus(self.config.data)

    @functools.cached_property
    def _tokens(self) -> list[tuple[Tokenised, np.ndarray]]:
        return [self._pieces([e.text for e in part]) for part in self.corpus[:2]]

    @functools.cached_property
    def _contexts(self) -> list[Contextual]:
        return [self._contextualise(tokens, show=True) for tokens, _ in self._tokens]

    def _pieces(self, texts: Sequence[str]) -> tuple[Tokenised, np.ndarray]:
        tokens = tokenise(self.pretrained.tokenizer, texts)
        return pieces(tokens, self.config.context.max_tokens)

    def _contextualise(self, tokens: Tokenised, show: bool = False) -> Contextual:
        progress = _Progress() if show else None
        return contextualise(self.pretrained, tokens, self.config.context, progress=progress)

    def _states(self, part: int) -> list[np.ndarray] | None:
        return None if self.config.context.train_encoder else self._contexts[part].states

    # Forward

    def _forward(self, model: nnx.Module, batch: Mapping[str, Any]) -> RationaleOutput:
        where = jnp.asarray(batch["where"])
        if not isinstance(model, TrainedAlong):
            states = jnp.asarray(batch["states"], jnp.float32)
            return _inner(model)(states, where, jnp.asarray(batch["ids"]))
        states = window_states(
            model.encoder,
            jnp.asarray(batch["ids"]),
            where,
            **self._special,
            pad_id=self.pretrained.config.pad_id,
            config=self.config.context,
        )
        return model.model(states, where, jnp.asarray(batch["ids"]))

    def _outputs(
        self,
        model: nnx.Module,
        tokens: Tokenised,
        states: Sequence[np.ndarray] | None,
        keep: Sequence[np.ndarray] | None = None,
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Probabilities [s e] of each piece and e_hat [b d]; `keep` hides tokens from factors."""
        graphdef, state = nnx.split(model)
        probs, predicted = [], []
        for first in range(0, len(tokens.ids), _ROWS):
            rows = slice(first, first + _ROWS)
            ids = tokens.ids[rows]
            length = -(-max(1, max(len(i) for i in ids)) // 32) * 32
            batch: dict[str, Any] = {}
            batch["ids"], batch["where"] = pad_stack(_filled(ids, _ROWS), length)
            if states is not None:
                batch["states"] = pad_stack(_filled(states[rows], _ROWS), length)[0]
            if keep is not None:
                batch["keep"] = pad_stack(_filled(keep[rows], _ROWS), length)[0]
            got = jax.device_get(self._compiled(graphdef, state, batch))
            probs += [p[: len(i)] for p, i in zip(got[0], ids, strict=False)]
            predicted.append(got[1][: len(ids)])
        return probs, np.concatenate(predicted)

    @functools.cached_property
    def _compiled(self) -> Any:
        def run(graphdef: Any, state: Any, batch: Any) -> tuple[Array, Array]:
            model = nnx.merge(graphdef, state)
            out = self._forward(model, batch)
            predicted = out.predicted
            if "keep" in batch:
                predicted = _inner(model).reconstruct(out, batch["keep"])
            return out.probs, predicted

        return jax.jit(run, static_argnums=0)

    def _rationales(
        self,
        model: nnx.Module,
        examples: Sequence[Example],
        tokens: Tokenised,
        owner: np.ndarray,
        states: Sequence[np.ndarray] | None,
    ) -> list[TextRationale]:
        if not examples:
            return []
        probs, _ = self._outputs(model, tokens, states)
        joined = zip(_joined(tokens.offsets, owner), _joined(probs, owner), strict=True)
        return [
            TextRationale(
                example.text,
                offsets,
                p,
                token_labels(offsets, example.spans) if example.spans else None,
            )
            for example, (offsets, p) in zip(examples, joined, strict=True)
        ]

    def _cosines(self, model: nnx.Module, part: int, masks: list[np.ndarray]) -> np.ndarray:
        """cos(e(x), e_hat from the kept tokens) of the first texts, mean over a text's pieces."""
        (tokens, owner), context = self._tokens[part], self._contexts[part]
        count = int(np.searchsorted(owner, len(masks)))
        some = Tokenised(tokens.ids[:count], tokens.offsets[:count])
        keep: list[np.ndarray] = []
        for text, mask in enumerate(masks):
            ends = np.cumsum([len(some.ids[i]) for i in np.flatnonzero(owner[:count] == text)])
            keep += np.split(mask, ends[:-1])
        states = None if self.config.context.train_encoder else context.states[:count]
        _, predicted = self._outputs(model, some, states, keep)
        target = context.targets[:count]
        cosine = (predicted * target).sum(axis=1) / np.maximum(
            np.linalg.norm(predicted, axis=1) * np.linalg.norm(target, axis=1), 1e-9
        )
        sums = np.bincount(owner[:count], cosine, len(masks))
        return sums / np.maximum(np.bincount(owner[:count], minlength=len(masks)), 1)


class _Progress:
    """Windows encoded so far: one line rewritten on a terminal, else a line every 10 seconds."""

    def __init__(self) -> None:
        self._began = self._shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if not terminal and now - self._shown < 10:
            return
        self._shown = now
        left = (now - self._began) * (total - done) / max(done, 1)
        line = f"encoding {done:,} of {total:,} windows, {left:.0f} s left"
        end = "" if terminal and done < total else "\n"
        start = "\r" if terminal else ""
        print(f"{start}{line:<60}", end=end, file=sys.stderr, flush=True)


def _inner(model: nnx.Module) -> RationaleModel:
    inner = model.model if isinstance(model, TrainedAlong) else model
    if not isinstance(inner, RationaleModel):
        raise UserError(f"model is a {type(model).__name__}, not one that RationaleTask.init makes")
    return inner


def _filled(values: Sequence[np.ndarray], rows: int) -> list[np.ndarray]:
    """As many arrays as a batch has rows: the last ones empty."""
    return [*values, *[values[0][:0]] * (rows - len(values))]


def _joined(parts: Sequence[np.ndarray], owner: np.ndarray) -> list[np.ndarray]:
    """The pieces of each text, one after the other."""
    cuts = np.flatnonzero(np.diff(owner)) + 1
    return (
        [
            np.concatenate(list(parts[a:b]))
            for a, b in zip([0, *cuts], [*cuts, len(owner)], strict=True)
        ]
        if len(owner)
        else []
    )
