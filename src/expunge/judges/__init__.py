"""Judges: one module each."""
