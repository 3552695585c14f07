"""Uncertainty-Aware Learning (arXiv 2406.04854) at the scale of a Ray cluster."""

__version__ = "0.1.0"
