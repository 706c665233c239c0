"""A run on disk: its settings, its checkpoints, its results, and its compressed form.

The modules are imported one by one (``from pyro_bnn.runs.run import train``), because
:mod:`~pyro_bnn.runs.names` has to load without torch.
"""
