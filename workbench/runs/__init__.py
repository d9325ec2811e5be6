"""Write and read the folder of a run."""
