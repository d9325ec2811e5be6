"""The live view of a running load and its controls."""
