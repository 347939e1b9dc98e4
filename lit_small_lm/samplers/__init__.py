"""Samplers: how text is drawn from a network."""
