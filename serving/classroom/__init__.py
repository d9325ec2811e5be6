"""Share one cluster among the members of a class."""
