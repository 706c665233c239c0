"""From a posterior to a smaller network."""

from .graph import UnsupportedLayerError as UnsupportedLayerError
from .graph import graph_of as graph_of
from .pruning import LayerReport as LayerReport
from .pruning import Pruned as Pruned
from .pruning import group_measures as group_measures
from .pruning import keep_masks as keep_masks
from .pruning import log_alpha as log_alpha
from .pruning import prune as prune
from .shrinking import EmptyNetworkError as EmptyNetworkError
from .shrinking import Shrunk as Shrunk
from .shrinking import shrink as shrink
