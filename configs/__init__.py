"""Ready-made configurations: families, shapes, and whole runs."""
