"""Send a load: the only package that sends requests."""
