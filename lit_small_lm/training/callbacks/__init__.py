"""Callbacks: schedules, checkpoints, metrics, progress."""
