"""Micro-benchmarks of the engines on this machine, and the efficiencies fitted to them."""
