"""Endpoints: deploy one, or call one that already runs."""
