"""From a posterior to a smaller network."""

from .pruning import Pruned as Pruned
from .pruning import prune as prune
