"""Figures: loaders that read results/, functions that draw what was read, and a catalog of which is which.

Only the modules that draw import matplotlib, so that whether a figure is stale is known without it.
"""
