"""The rationale model as a Task: its data, its losses, how it is judged and shown."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from moe_jax import losses
from moe_jax.common.progress import counting
from moe_jax.data.batches import batches, pad_stack
from moe_jax.data.clustering import spherical_kmeans
from moe_jax.data.corpus import load_corpus
from moe_jax.data.types import Corpus, Example, token_labels
from moe_jax.errors import UserError
from moe_jax.models.encode import Tokenised, tokenise
from moe_jax.models.pretrained import PretrainedEncoder, load_encoder
from moe_jax.rationale.config import RationaleConfig
from moe_jax.rationale.contextualise import Contextual, contextualise, pieces
from moe_jax.rationale.forward import Forward, TrainedAlong, inner
from moe_jax.rationale.initialise import word_evidence
from moe_jax.rationale.model import RationaleModel
from moe_jax.rationale.results import Assessment, TextRationale
from moe_jax.training.mesh import batch_axes
from moe_jax.training.task import Batch, Batches, Task

_START_TOKENS = 30_000  # states that the start of the gate is found on
_NUM_SCORED = 100  # test texts whose comprehensiveness and sufficiency are measured


class RationaleTask(Task):
    """The six losses (docs/rationale.md) on a corpus, with an encoder frozen or trained along.

    Args:
      config: validated here.
      pretrained: the encoder; None loads `config.context.encoder`.

    Raises:
      UserError: a bad config; the encoder can't be loaded.
    """

    def __init__(self, config: RationaleConfig, pretrained: PretrainedEncoder | None = None):
        config.validate()
        self.config = config
        # Not when it is first needed: that may be under a trace.
        self.pretrained = pretrained or load_encoder(config.context.encoder)
        self._forward = Forward(config, self.pretrained)
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
        mine = inner(model)
        context = self._contexts[0]
        tokens = max(1, sum(len(x) for x in context.states))
        mean = sum(x.sum(axis=0, dtype=np.float64) for x in context.states) / tokens
        mine.state_mean_d[...] = jnp.asarray(mean, jnp.float32)
        mine.target_mean_d[...] = jnp.asarray(context.targets.mean(axis=0))
        if self.config.model.start == "kmeans":
            seed = int(jax.random.bits(rngs.params(), (), jnp.uint32))
            centres = spherical_kmeans(
                self._drawn_states(model, seed),
                self.config.model.num_factors,
                seed=seed,
                restarts=self.config.model.restarts,
            )
            mine.gate.w_de[...] = jnp.asarray(centres.T)
            self._weigh_words(model)
        return model

    def _drawn_states(self, model: nnx.Module, seed: int) -> np.ndarray:
        """H of random training texts, at least _START_TOKENS tokens of them if there are."""
        tokens, states = self._tokens[0][0], self._states(0)
        chosen: list[int] = []
        left = _START_TOKENS
        for text in np.random.default_rng(seed).permutation(len(tokens.ids)):
            if left <= 0:
                break
            chosen.append(int(text))
            left -= len(tokens.ids[text])
        some = None if states is None else [states[i] for i in chosen]
        return np.concatenate(self._forward.states(model, [tokens.ids[i] for i in chosen], some))

    def _weigh_words(self, model: nnx.Module) -> None:
        """The gate's weights of words, from its own assignment of the training tokens."""
        table, config = inner(model).words_ve, self.config.model
        if table is None:
            return
        tokens = self._tokens[0][0]
        for _ in range(config.word_rounds):
            probs = self._forward.probabilities(model, tokens.ids, self._states(0))
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
            "balance": losses.load_balance(
                out.probs, where=where, over="batch", axis_name=batch_axes()
            ),
        }
        if out.decoded is not None:
            terms["token"] = losses.token_reconstruction(out.states, out.decoded, where=where)
        return losses.weighted_sum(terms, dataclasses.asdict(self.config.losses))

    def train_data(self, part: tuple[int, int] = (0, 1)) -> Batches:
        """Endless shuffled batches of padded texts."""
        context, tokens = self._contexts[0], self._tokens[0][0]
        length = _length(tokens)
        ids, where = pad_stack(tokens.ids, length)
        arrays = {"ids": ids, "where": where, "target": context.targets}
        if not self.config.context.train_encoder:
            arrays["states"] = pad_stack(context.states, length)[0]
        return batches(
            arrays, batch_size=self.config.batch_size, seed=self.config.train.seed, part=part
        )

    def batch_like(self) -> Batch:
        """Shapes of a batch, from the tokens alone: nothing is encoded."""
        rows, width = self.config.batch_size, self.pretrained.config.d_model
        length = _length(self._tokens[0][0])
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "ids": ((rows, length), jnp.int32),
            "where": ((rows, length), jnp.bool_),
            "target": ((rows, width), jnp.float32),
        }
        if not self.config.context.train_encoder:
            shapes["states"] = ((rows, length, width), jnp.float16)
        return {name: jax.ShapeDtypeStruct(*like) for name, like in shapes.items()}

    def evaluate(self, model: nnx.Module) -> dict[str, float]:
        """Figures of the test part by name; {} where there is no test part."""
        from moe_jax.rationale.assess import flat

        if not self.corpus.test:
            return {}
        return flat(self.assessment(model))

    def report(self, model: nnx.Module, workdir: Path) -> None:
        """report.html and assessment.json in `workdir`."""
        from moe_jax.common.schema import to_json
        from moe_jax.rationale.report import write_report
        from moe_jax.training import metrics

        file = workdir / "metrics.jsonl"
        write_report(
            self.assessment(model),
            metrics.read(file) if file.exists() else [],
            workdir / "report.html",
            title="Which factor took which word",
            config_text=json.dumps(to_json(self.config), indent=2),
        )

    def show(self, workdir: Path) -> bool:
        """The figures beside the baselines and some coloured sentences, as `report` left them."""
        from rich.console import Console

        from moe_jax.rationale.assess import read_assessment
        from moe_jax.rationale.report import print_summary

        stored = workdir / "assessment.json"
        if not stored.exists():
            return False
        print_summary(read_assessment(stored), Console())
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

    def corpus_rationales(
        self, model: nnx.Module
    ) -> tuple[list[TextRationale], list[TextRationale]]:
        """The same of the corpus: its training part and its test part."""
        train, test = (
            self._rationales(model, part, *self._tokens[i], self._states(i))
            for i, part in enumerate(self.corpus[:2])
        )
        return train, test

    def encode(self) -> None:
        """Compute the states of the corpus now, which otherwise happens when they are needed."""
        if not self.config.context.train_encoder or self.config.baselines:
            _ = self._contexts

    def assessment(self, model: nnx.Module) -> Assessment:
        """Everything measured on the test part (on the training part if there is none)."""
        from moe_jax.rationale.assess import assess

        if self._last is not None and self._last[0] is model:
            return self._last[1]
        which = [0, 1 if self.corpus.test else 0]
        parts = self.corpus_rationales(model)
        found = [parts[i] for i in which]
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
        found = [self._pieces([e.text for e in part]) for part in self.corpus[:2]]
        if not any(len(ids) for ids in found[0][0].ids):
            raise UserError(
                f"data.path={self.config.data.path}: no text to train on has a token: all their "
                "characters are ones that the encoder's tokenizer leaves out, such as white space "
                "and control characters; give texts with words"
            )
        return found

    @functools.cached_property
    def _contexts(self) -> list[Contextual]:
        return [self._contextualise(tokens, show=True) for tokens, _ in self._tokens]

    def _pieces(self, texts: Sequence[str]) -> tuple[Tokenised, np.ndarray]:
        tokens = tokenise(self.pretrained.tokenizer, texts)
        return pieces(tokens, self.config.context.max_tokens)

    def _contextualise(self, tokens: Tokenised, show: bool = False) -> Contextual:
        progress = counting("encoding", "windows")
        with contextlib.closing(progress):
            return contextualise(
                self.pretrained,
                tokens,
                self.config.context,
                progress=progress if show else None,
            )

    def _states(self, part: int) -> list[np.ndarray] | None:
        return None if self.config.context.train_encoder else self._contexts[part].states

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
        probs = self._forward.probabilities(model, tokens.ids, states)
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
        predicted = self._forward.predicted(model, some.ids, states, keep)
        target = context.targets[:count]
        cosine = (predicted * target).sum(axis=1) / np.maximum(
            np.linalg.norm(predicted, axis=1) * np.linalg.norm(target, axis=1), 1e-9
        )
        sums = np.bincount(owner[:count], cosine, len(masks))
        return sums / np.maximum(np.bincount(owner[:count], minlength=len(masks)), 1)


def _length(tokens: Tokenised) -> int:
    """To which a batch is padded."""
    return max(1, max(len(i) for i in tokens.ids))


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
