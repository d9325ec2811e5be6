"""Run several loads and combine them into one result."""
