"""What every package shares and what needs no JAX: files, JSON, checks, progress, statistics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
