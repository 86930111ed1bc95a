"""Figures: loaders that read results/, functions that draw the data, and a catalog that combines them.

Only the modules that draw import matplotlib, so that checking for stale figures is fast.
"""
