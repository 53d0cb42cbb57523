"""Measurements: what trisite costs next to a plain mount of the same kind."""
