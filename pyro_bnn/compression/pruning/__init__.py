"""From a posterior to a physically smaller network."""
