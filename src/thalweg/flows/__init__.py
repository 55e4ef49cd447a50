"""Differential equations for the path that an optimiser takes on average, oscillation included."""
