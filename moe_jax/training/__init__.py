"""One training loop for every task: a run from its claim to its report, checkpoints, meshes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
