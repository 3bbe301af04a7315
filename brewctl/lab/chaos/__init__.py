"""Chaos: faults under load, by a plan, and a verdict on what the system made of them.

Read `faults` (what one fault does), `scenarios` (which faults there are, and their plans), `stage` (the servers and
nodes that a fault may touch), then `chaos` (a run), and `verdict`.
"""
