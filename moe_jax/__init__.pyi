from . import data as data
from . import gating as gating
from . import layers as layers
from . import losses as losses
from . import misrouting as misrouting
from . import models as models
from . import rationale as rationale
from . import reports as reports
from . import training as training
from .errors import UserError as UserError
from .gating import GateConfig as GateConfig
from .gating import Routing as Routing
from .gating import RoutingEdit as RoutingEdit
from .gating import dropped as dropped
from .gating import expert_counts as expert_counts
from .gating import gate_logits as gate_logits
from .gating import route as route
from .gating import update_selection_bias as update_selection_bias
from .layers import ExpertOptions as ExpertOptions
from .layers import FeedForward as FeedForward
from .layers import Gate as Gate
from .layers import MoE as MoE
from .layers import SelectionBias as SelectionBias

__version__: str
