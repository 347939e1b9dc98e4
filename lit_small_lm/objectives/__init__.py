"""Objectives: what a model is asked, and how its answer counts."""
