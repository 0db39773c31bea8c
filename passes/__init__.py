"""Passes over the operator graph: fuse, count, annotate, partition, legalise, schedule, lower.

A pass is a plain function with frozen results. Passes know the graph and device profiles, never engines.
"""
