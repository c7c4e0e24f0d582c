"""Corpora and batches.

`corpus` (types, configuration, loading), `readers` (texts and corpora of the user's files),
`documents` (the default corpus, out of `installed` documentation by `prose`), `batches` (Grain
iterators over arrays), `clustering` (spherical k-means).
"""
