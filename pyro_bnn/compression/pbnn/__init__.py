"""The ``.pbnn`` file: one arithmetic coder for graph, positions, values and biases."""
