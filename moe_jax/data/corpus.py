"""Corpora: the configuration, and reading, making and writing one.

A corpus is either read from the user's files (`readers.py`) or cut out of the documentation that
Python and the installed packages carry (`documents.py`).
"""

import dataclasses
import json
import os
from pathlib import Path

from moe_jax.common.checks import joined, number, text, whole, wrong
from moe_jax.common.files import local, local_path, new_folder
from moe_jax.data import documents, readers
from moe_jax.data.types import Corpus, Example
from moe_jax.errors import UserError


@dataclasses.dataclass(kw_only=True)
class CorpusConfig:
    """Which texts to use.

    Attributes:
      path: None = the documentation that Python and the installed packages carry; or a .jsonl,
        .txt or .md file, or a folder (`load_corpus` says how each is read).
      num_train: examples for training. None = 1,200 of the default corpus, everything of a file;
        a number takes the first so many of a file's training examples.
      num_test: the same for the held-out examples; None = 300 of the default corpus.
      test_fraction: share of the distinct texts that is held out, for files without their own
        split (ignored when the split is given or made by the default corpus).
      seed: decides the fragments of the default corpus, and which texts of a file are held out.
    """

    path: str | None = None
    num_train: int | None = None
    num_test: int | None = None
    test_fraction: float = 0.2
    seed: int = 0

    def validate(self, path: str = "") -> None:
        """Check every field; a UserError names the first wrong one as `path.field`."""
        if self.path is not None:
            text(path, "path", self.path)
            if not self.path.strip():
                must = "be a file or folder, or None (documentation of the installed packages)"
                raise wrong(path, "path", self.path, must)
            local(self.path, joined(path, "path"))
        whole(path, "num_train", self.num_train, 1, none="all")
        whole(path, "num_test", self.num_test, 0, none="all")
        number(path, "test_fraction", self.test_fraction, low=0, below=1)
        whole(path, "seed", self.seed, 0, 2**32 - 1)


def load_corpus(config: CorpusConfig) -> Corpus:
    """Read or build the corpus that `config` asks for; the same config gives the same corpus.

    By `config.path`:

    * None: the default corpus (`documents.build`).
    * FILE.jsonl: one object a line, {"text": str, "spans": [[start, end, label], ...]}; spans are
      optional, count characters (not bytes) of the text, and a label is an index or a name; other
      keys are ignored. A labels.json (list of names) beside the file fixes names and indices.
    * FILE.txt: one text a line. FILE.md: one text a paragraph, without headings and code blocks.
    * a folder with train.jsonl: that file and test.jsonl are the split, labels.json (optional)
      names the labels. The test part may be empty, but the file must be there.
    * any other folder: all its .txt, .md and .jsonl files, also in subfolders, sorted by path;
      hidden files and folders (.git) are left out.

    Without a given split, texts are ordered by a hash of (seed, text) and the first
    `test_fraction` of the distinct texts are held out: equal texts stay together, and neither the
    order of the lines nor the names of the files matter.

    Raises:
      UserError: bad configuration or input; one line with the file and, where it applies, the line.
    """
    config.validate()
    if config.path is None:
        return documents.build(
            num_train=1200 if config.num_train is None else config.num_train,
            num_test=300 if config.num_test is None else config.num_test,
            seed=config.seed,
        )
    corpus = readers.read(Path(config.path), config.test_fraction, config.seed)
    return Corpus(
        _first(corpus.train, config.num_train, "num_train", config.path),
        _first(corpus.test, config.num_test, "num_test", config.path),
        corpus.labels,
    )


def _first(examples: list[Example], number: int | None, name: str, path: str) -> list[Example]:
    if number is not None and number > len(examples):
        part = "training" if name == "num_train" else "test"
        raise UserError(
            f"{name}={number} is more than the {len(examples)} {part} examples of {path}"
        )
    return examples[:number]


def write_jsonl(corpus: Corpus, folder: str | os.PathLike[str]) -> None:
    """Write a corpus as train.jsonl, test.jsonl and labels.json; `load_corpus` reads it back.

    The folder is there whole or not at all.

    Raises:
      UserError: `folder` is a file or a folder that holds something already, or can't be written.
    """
    with new_folder(local_path(folder, "folder")) as part:
        for name, examples in (("train", corpus.train), ("test", corpus.test)):
            with open(part / f"{name}.jsonl", "w", encoding="utf-8", newline="\n") as file:
                for example in examples:
                    record = {"text": example.text, "spans": [list(s) for s in example.spans]}
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
        names = json.dumps(corpus.labels, ensure_ascii=False) + "\n"
        (part / "labels.json").write_text(names, encoding="utf-8")
