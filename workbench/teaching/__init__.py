"""Simulations and figures that explain batching and paging."""
