"""From real weights to a few values per layer, and few bits per weight.

There are three ways, each of which can be read on its own:

1. codebooks from the posterior: :mod:`~pyro_bnn.compression.quantization.codebooks` assigns few
   values to the weights of a pruned network, by
   :mod:`~pyro_bnn.compression.quantization.exact_k_means` or, if bits have a price, by
   :mod:`~pyro_bnn.compression.quantization.entropy_constraint`. Then
   :mod:`~pyro_bnn.compression.quantization.fine_tuning` trains them;
2. codebooks learned by the fit: :mod:`~pyro_bnn.compression.quantization.weight_sharing`;
3. fixed point: :mod:`~pyro_bnn.compression.quantization.precision` reads the number of bits off the
   posterior variances.
"""
