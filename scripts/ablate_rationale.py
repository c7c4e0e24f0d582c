r"""What each part of the rationale model is worth on a labelled corpus: a table in Markdown.

  PYTHONPATH=. python scripts/ablate_rationale.py --data=FOLDER --cache=FOLDER [--seeds=5] \
      [--only=base,losses] [--set=model.words=0,train.steps=100]

Every row is the run of configs/rationale_wikipedia.py with one thing changed. States are encoded
once for each choice of windows and kept in the cache. Columns: the macro F1 over test tokens before
training (the start) and after, its sd over seeds, AMI, the macro F1 over the training tokens (by
which settings were chosen; test figures were not looked at for that), and seconds for start and
training together, after encoding.
"""

import argparse
import ast
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from flax import nnx

from configs.rationale_wikipedia import get_config
from moe_jax.rationale import RationaleConfig, RationaleTask, metrics
from moe_jax.training import train

GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "base": {"the config": {}},
    "losses": {
        f"losses.{name}=0": {f"losses.{name}": 0.0}
        for name in ("sentence", "entropy", "overlap", "diversity", "balance")
    }
    | {
        "losses.token=0.001, linear decoder": {"losses.token": 1e-3, "model.decoder": "linear"},
        "all regularisers 0": {
            f"losses.{name}": 0.0 for name in ("entropy", "overlap", "diversity", "balance")
        },
    },
    "gate": {
        "words=0": {"model.words": 0.0},
        "words=0.3": {"model.words": 0.3},
        "words=1": {"model.words": 1.0},
        "smoothing=none": {"model.smoothing": "none"},
        "smoothing=gaussian": {"model.smoothing": "gaussian"},
        "words=0, smoothing=none": {"model.words": 0.0, "model.smoothing": "none"},
        "stay=0.9": {"model.stay": 0.9},
        "stay=0.97": {"model.stay": 0.97},
        "temperature=0.2": {"model.temperature": 0.2},
        "temperature=1": {"model.temperature": 1.0},
        "k=1": {"model.k": 1},
        "k=2": {"model.k": 2},
    },
    "start": {
        "start=random": {"model.start": "random"},
        "start=random, 1,000 steps": {"model.start": "random", "train.steps": 1000},
        "restarts=1": {"model.restarts": 1},
        "word_rounds=0": {"model.word_rounds": 0},
        "word_rounds=4": {"model.word_rounds": 4},
    },
    "factors": {
        "normalise=sum": {"model.normalise": "sum"},
        "normalise=mean": {"model.normalise": "mean"},
        "normalise=unit": {"model.normalise": "unit"},
        "centre=False": {"model.centre": False},
        "transform=linear, factor_dim=32": {"model.transform": "linear", "model.factor_dim": 32},
        "transform=mlp, factor_dim=32": {"model.transform": "mlp", "model.factor_dim": 32},
    },
    "context": {
        "pool=token": {"context.pool": "token"},
        "stride=4": {"context.stride": 4},
        "windows=8": {"context.windows": (8,)},
        "windows=16": {"context.windows": (16,)},
        "windows=12,24, stride=4": {"context.windows": (12, 24), "context.stride": 4},
        "layer=4, stride=4": {"context.layer": 4, "context.stride": 4},
        "windows=0 (whole text)": {"context.windows": (0,)},
        "windows=0, pool=token": {"context.windows": (0,), "context.pool": "token"},
        "windows=0, pool=token, words=0, smoothing=none": {
            "context.windows": (0,),
            "context.pool": "token",
            "model.words": 0.0,
            "model.smoothing": "none",
        },
    },
}


class Row:
    """The figures of one setting over seeds."""

    def __init__(self) -> None:
        self.start: list[float] = []
        self.figures: list[tuple[float, float, float, float, float]] = []
        self.seconds: list[float] = []

    def line(self, name: str) -> str:
        """The row in Markdown."""
        f1, precision, recall, ami, training = np.array(self.figures).T
        return (
            f"| {name} | {np.mean(self.start):.3f} | {f1.mean():.3f} ± {f1.std():.3f} "
            f"| {precision.mean():.3f} | {recall.mean():.3f} | {ami.mean():.3f} "
            f"| {training.mean():.3f} | {np.mean(self.seconds):.0f} |"
        )


def changed(config: RationaleConfig, changes: dict[str, Any]) -> RationaleConfig:
    """The config with fields set by dotted path."""
    for path, value in changes.items():
        *folders, name = path.split(".")
        place: Any = config
        for folder in folders:
            place = getattr(place, folder)
        getattr(place, name)
        setattr(place, name, value)
    return config


def figures(task: RationaleTask, model: nnx.Module) -> tuple[float, float, float, float, float]:
    """Macro F1, precision, recall, AMI on test tokens; macro F1 on training tokens."""
    found, gold = [], []
    for rationales in task.corpus_rationales(model):
        found.append(np.concatenate([r.probs.argmax(axis=1) for r in rationales]))
        gold.append(np.concatenate([np.asarray(r.labels) for r in rationales]))
    labels = len(task.corpus.labels)
    size = {"num_factors": task.config.model.num_factors, "num_labels": labels}
    mapping = metrics.hungarian_map(metrics.contingency(found[0], gold[0], **size))
    test = metrics.score_labels(mapping[found[1]], gold[1], labels)
    training = metrics.score_labels(mapping[found[0]], gold[0], labels)
    ami = metrics.adjusted_mutual_information(metrics.contingency(found[1], gold[1], **size))
    return test.macro_f1, test.macro_precision, test.macro_recall, ami, training.macro_f1


class Watched(RationaleTask):
    """The task, which keeps the model as it is before the first step."""

    def prepare(self, model: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        """As always; and keep a copy."""
        self.start = nnx.clone(super().prepare(model, rngs))
        return model


def run(row: Row, args: argparse.Namespace, changes: dict[str, Any], seed: int) -> None:
    """One run, added to the row."""
    config = get_config()
    config.data.path, config.context.cache, config.train.seed = args.data, args.cache, seed
    changed(config, args.set | changes)
    config.train.checkpoint_every = config.train.steps
    task = Watched(config)
    task.encode()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        model = train(task, config.train, folder)
        row.seconds.append(time.monotonic() - began)
    row.start.append(figures(task, task.start)[0])
    row.figures.append(figures(task, model))


def settings(text: str) -> dict[str, Any]:
    """{"model.k": 2} from "model.k=2"; commas lie between settings."""
    pairs = [pair.split("=", 1) for pair in text.split(",") if pair]
    return {path: _value(value) for path, value in pairs}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main() -> None:
    """Run what was asked for and print each row as soon as it is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--cache", required=True, help="folder for encoded states")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default=",".join(GROUPS), help="groups or names of rows")
    parser.add_argument("--set", type=settings, default={}, help="PATH=VALUE,... in every row")
    args = parser.parse_args()
    print("| setting | start F1 | F1 | precision | recall | AMI | training F1 | s |")
    print("|---|---|---|---|---|---|---|---|")
    only = args.only.split(",")
    for group, rows in GROUPS.items():
        for name, changes in rows.items():
            if group not in only and name not in only:
                continue
            row = Row()
            for seed in range(args.seeds):
                run(row, args, changes, seed)
            print(row.line(name), flush=True)


if __name__ == "__main__":
    main()
