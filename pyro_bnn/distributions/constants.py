"""Constants of entropies and densities."""

import math

__all__ = ["EULER_GAMMA", "LOG_2_PI", "LOG_2_PI_E"]

EULER_GAMMA = 0.5772156649015329
LOG_2_PI = math.log(2 * math.pi)
LOG_2_PI_E = math.log(2 * math.pi * math.e)
"""Twice the entropy of a standard normal variable; that of N(μ, v) is (log(2πe) + log v)/2."""
