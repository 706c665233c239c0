"""From real weights to a few values per layer, and few bits per weight."""
