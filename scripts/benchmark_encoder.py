"""Compares the encoder's speed on this machine with transformers' torch model, if torch is there.

    python scripts/benchmark_encoder.py --texts=200 --rounds=5

Both read the same random token ids, 40 to 110 a text as paragraphs have, and give the states of
every token as NumPy arrays. They run in turns in one process, so that other load hits both, and
the ratio of each round's times is taken; tokens/s leave padding out, so its cost counts. Torch
pads batches of 32 texts of similar length, the way sentence-transformers does.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from absl import flags

from launch import _cli as cli
from moe_jax.errors import UserError
from moe_jax.models import encode, pretrained

_ENCODER = flags.DEFINE_string("encoder", pretrained.DEFAULT_ENCODER, "Its name, or a folder.")
_TEXTS = flags.DEFINE_integer("texts", 200, "Texts in a round.", lower_bound=1)
_SHORTEST = flags.DEFINE_integer("shortest", 40, "Tokens of the shortest text.", lower_bound=1)
_LONGEST = flags.DEFINE_integer("longest", 110, "Tokens of the longest text.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; the median is printed.", lower_bound=1)
_TORCH_BATCH = flags.DEFINE_integer("torch_batch", 32, "Texts in torch's batches.", lower_bound=1)


def random_pieces(config: pretrained.EncoderConfig) -> encode.Tokenised:
    """Random ids (none of the first thousand, where special tokens are)."""
    if _SHORTEST.value > _LONGEST.value:
        raise UserError(f"--shortest={_SHORTEST.value} is more than --longest={_LONGEST.value}")
    random = np.random.default_rng(0)
    lengths = random.integers(_SHORTEST.value, _LONGEST.value + 1, _TEXTS.value)
    low = min(1000, config.vocab_size - 1)
    ids = [random.integers(low, config.vocab_size, n).astype(np.int32) for n in lengths]
    return encode.Tokenised(ids, [np.zeros((n, 2), np.int32) for n in lengths])


def torch_runner(encoder: str, pieces: encode.Tokenised) -> Callable[[], None] | None:
    """A function that encodes the texts with torch; None where torch is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    folder = pretrained.find_folder(encoder)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    order = sorted(range(len(pieces.ids)), key=lambda i: -len(pieces.ids[i]))
    batches = []
    for first in range(0, len(order), _TORCH_BATCH.value):
        chosen = [pieces.ids[i] for i in order[first : first + _TORCH_BATCH.value]]
        # Two more positions stand for the special tokens.
        ids_bs = np.ones((len(chosen), len(chosen[0]) + 2), np.int64)
        where_bs = np.zeros_like(ids_bs)
        for row, ids in enumerate(chosen):
            ids_bs[row, 1 : len(ids) + 1] = ids
            where_bs[row, : len(ids) + 2] = 1
        batches.append((torch.from_numpy(ids_bs), torch.from_numpy(where_bs)))

    def run() -> None:
        with torch.inference_mode():
            for ids, where in batches:
                model(input_ids=ids, attention_mask=where).last_hidden_state.numpy()

    return run


def seconds(run: Callable[[], None]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark and prints a table."""
    if any(arg in ("-h", "--help", "-help", "--helpfull") for arg in argv[1:]):
        print(f"{(__doc__ or '').strip()}\n{flags.FLAGS.module_help(sys.modules[__name__])}")
        return
    try:
        left = flags.FLAGS(list(argv))
    except flags.Error as error:
        raise UserError(str(error)) from None
    if len(left) > 1:
        raise UserError(f"{left[1]!r}: not a flag; flags are written --name=value")
    encoder = pretrained.load_encoder(_ENCODER.value)
    pieces = random_pieces(encoder.config)
    tokens = sum(len(ids) for ids in pieces.ids)
    runs: dict[str, Callable[[], None]] = {
        "moe_jax": lambda: (encode.token_states(encoder, pieces), None)[1]
    }
    theirs = torch_runner(_ENCODER.value, pieces)
    if theirs is not None:
        runs["torch"] = theirs
    first = {name: seconds(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_ROUNDS.value):
        for name, run in runs.items():
            times[name].append(seconds(run))
    print(
        f"{encoder.name}: {len(pieces.ids)} texts, {tokens} tokens, median of {_ROUNDS.value} "
        f"rounds, {jax.default_backend()}, JAX {jax.__version__}"
    )
    print(f"{'':<10}{'tokens/s':>12}{'compile s':>12}")
    for name, each in times.items():
        median = statistics.median(each)
        # What the first call took more than the others: compilation, or torch's warm-up.
        print(f"{name:<10}{tokens / median:>12,.0f}{max(0, first[name] - median):>12.1f}")
    if theirs is None:
        print("torch and transformers are not both installed: no comparison")
        return
    ratios = [b / a for a, b in zip(times["moe_jax"], times["torch"], strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"moe_jax / torch: {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv))
