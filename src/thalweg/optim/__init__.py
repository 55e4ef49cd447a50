"""Schedules and optimizers that know the curvature: for any torch training loop."""
