"""Account for the tokens and requests of each tenant."""
