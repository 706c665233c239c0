"""From a posterior to a physically smaller network.

To see how a network is pruned, read in this order:

1. :mod:`~pyro_bnn.compression.pruning.noise_measures`: noise over signal, of weights and groups;
2. :mod:`~pyro_bnn.compression.pruning.posterior_pruning`: ``prune``, from thresholds to the smaller
   network, and :mod:`~pyro_bnn.compression.pruning.pruned_network`, what it returns;
3. :mod:`~pyro_bnn.compression.pruning.threshold_search`: thresholds from validation data;
4. :mod:`~pyro_bnn.compression.pruning.restriction`: how the fit continues on the smaller network.

To see how a network with zeros becomes a smaller one, read in this order:

1. :mod:`~pyro_bnn.compression.pruning.channels`: a picture of the algorithm, and its terms;
2. :mod:`~pyro_bnn.compression.pruning.shrinking`: ``shrink``, all steps from the graph to the cut;
3. :mod:`~pyro_bnn.compression.pruning.constants`: the forward pass, and
   :mod:`~pyro_bnn.compression.pruning.needed`: the backward pass;
4. :mod:`~pyro_bnn.compression.pruning.graph`: the normal form of graphs that these passes read, and
   :mod:`~pyro_bnn.compression.pruning.normal_form`: that of single operations.

The remaining modules are read on demand: :mod:`~pyro_bnn.compression.pruning.layers` and
:mod:`~pyro_bnn.compression.pruning.nodes` hold facts about single layers and nodes,
:mod:`~pyro_bnn.compression.pruning.uncut_layers` the reasons not to cut a layer,
:mod:`~pyro_bnn.compression.pruning.name_patterns` settings by parameter name, and
:mod:`~pyro_bnn.compression.pruning.unit_order` sorts hidden units for the file format.
"""
