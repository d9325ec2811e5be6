"""Share one cluster among the people of a workshop."""
