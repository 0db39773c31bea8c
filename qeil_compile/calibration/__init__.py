"""Micro-benchmarks of the engines on this machine, and the efficiencies fitted to them."""

from .run import Outcome, calibrate, default_specs, stored

__all__ = ["Outcome", "calibrate", "default_specs", "stored"]
