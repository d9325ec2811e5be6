"""Execute notebooks with papermill, once or over a grid of parameters."""
