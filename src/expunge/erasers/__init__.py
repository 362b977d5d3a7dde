"""Erasers: one module, one paper."""
