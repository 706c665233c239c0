"""What every inference returns: draws of the weights, predictions, moments."""

from .posterior import Posterior as Posterior
from .prediction import Prediction as Prediction
