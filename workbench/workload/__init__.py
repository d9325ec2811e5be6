"""Describe what is sent and when. Pure: no clock, no network, no cluster."""
