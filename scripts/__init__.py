"""Scripts around the project: checks that need more than its packages."""
