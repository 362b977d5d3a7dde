"""Analyses: one module each."""
