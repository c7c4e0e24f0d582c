"""Which experts a prompt uses, and what happens when it is sent to others.

`profile.run` is Stage 1 and `study.run` Stage 2; `interventions` makes edits of a model's routing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
