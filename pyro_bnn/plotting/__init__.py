"""Pictures of results: each function takes a result and returns a matplotlib figure."""

from .diagnostics import plot_comparison as plot_comparison
from .diagnostics import plot_simulation as plot_simulation
