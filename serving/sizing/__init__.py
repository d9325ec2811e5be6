"""Compute whether and how a model fits the hardware."""
