"""Tools of every inference: compilation, files, random numbers, devices, minibatches, checks.

Nothing here knows about priors, guides or posteriors.
"""
