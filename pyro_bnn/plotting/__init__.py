"""Figures of results, in the manner of ArviZ.

Each ``plot_*`` function takes a result or plain tensors and returns a
:class:`matplotlib.figure.Figure`. Nothing is shown, and the global state of matplotlib is left
alone, so a figure can be saved (``figure.savefig("loss.png")``) or end a notebook cell. matplotlib
is imported when the first figure is made.
"""

from .animation import animate_weights as animate_weights
from .compression import plot_acceleration as plot_acceleration
from .compression import plot_pruning_histograms as plot_pruning_histograms
from .compression import plot_receptive_fields as plot_receptive_fields
from .diagnostics import plot_comparison as plot_comparison
from .diagnostics import plot_simulation as plot_simulation
from .posterior import plot_accuracy_against_draws as plot_accuracy_against_draws
from .posterior import plot_certain_digits as plot_certain_digits
from .posterior import plot_loss_terms as plot_loss_terms
from .posterior import plot_regression_bands as plot_regression_bands
from .weights import plot_run_summary as plot_run_summary
from .weights import plot_weight_matrices as plot_weight_matrices
