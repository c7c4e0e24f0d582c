"""Corpora and batches.

`corpus` (types, configuration, loading), `readers` (the user's files), `documents` (the default
corpus), `prose` (sentences out of docstrings), `batches` (Grain iterators over arrays).
"""
