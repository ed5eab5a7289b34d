"""How a database of one version becomes one of the next: a file of `versions` for every step."""
