"""State a claim, evaluate it against measurements and keep the verdict."""
