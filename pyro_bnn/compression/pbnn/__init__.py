"""The ``.pbnn`` file format: one arithmetic coder for a whole network.

``FORMAT.md`` in this folder specifies the format. Every ``code_...`` function describes one part of
it for both directions: an encoder writes the values passed to it, a decoder ignores them and
returns those of the file. To see how a network becomes bytes, read from the network down:

1. :mod:`~pyro_bnn.compression.pbnn.codec`: ``save``, ``load`` and the other public functions;
2. :mod:`~pyro_bnn.compression.pbnn.network_codes`: one pass over the nodes of a network, whose
   values come from :mod:`~pyro_bnn.compression.pbnn.network_sources`;
3. :mod:`~pyro_bnn.compression.pbnn.graph_codes`: operations, with their arguments in
   :mod:`~pyro_bnn.compression.pbnn.argument_codes`; and
   :mod:`~pyro_bnn.compression.pbnn.layer_codes`: sizes and options of layers.

To see how a tensor becomes bits, read from the bits up:

1. :mod:`~pyro_bnn.compression.pbnn.range_coder`: bits of known probability become bytes;
2. :mod:`~pyro_bnn.compression.pbnn.context_mixing`: the probabilities adapt;
3. :mod:`~pyro_bnn.compression.pbnn.forms`: the forms that a tensor may have in a file;
4. :mod:`~pyro_bnn.compression.pbnn.sparsity_codes`: positions of nonzero numbers, among them
   :mod:`~pyro_bnn.compression.pbnn.masks`; and :mod:`~pyro_bnn.compression.pbnn.value_codes`: the
   numbers themselves, on :mod:`~pyro_bnn.compression.pbnn.number_grids`;
5. :mod:`~pyro_bnn.compression.pbnn.tensor_search`: the search for the cheapest form;
6. :mod:`~pyro_bnn.compression.pbnn.streams`: the writer and the reader that the pass over the nodes
   uses, and :mod:`~pyro_bnn.compression.pbnn.sizes`: the bytes that each part takes.
"""
