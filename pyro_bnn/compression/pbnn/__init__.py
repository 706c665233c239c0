"""The ``.pbnn`` file format: one arithmetic coder for a whole network; see ``FORMAT.md``."""
