"""Observe the cluster: the only package that samples it."""
