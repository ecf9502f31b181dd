"""Recorders for the training loops of other packages, and a report for their loggers.

Each module imports the package it is named after; importing coordcheck imports none of them.
"""
