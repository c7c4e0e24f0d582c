"""Texts, corpora and batches: the user's files, the default corpus, Grain iterators, clustering."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
