"""Public model classes, one a file."""
