"""Tools that all inference methods share.

They cover compilation, files, random numbers, devices, minibatches and checks. Nothing here depends
on priors, guides or posteriors.
"""
