"""The command line, ``pyro-bnn``: one module per command."""
