"""Hugging Face: what public configurations and weights are called there, import, export, and the Auto classes."""
