"""What inference stands on: compilation, checkpoints, random numbers, devices, minibatches, checks of inputs.

Nothing here knows of priors, guides or posteriors.
"""
