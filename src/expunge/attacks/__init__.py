"""Attacks: one module, one paper."""
