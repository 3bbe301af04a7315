"""Chaos: inject planned faults under load, then check that no order was lost and no effect doubled.

Read `faults` (what one fault does), `scenarios` (which faults there are, and their plans), `stage` (the servers and
nodes that a fault may touch), then `chaos` (a run), and `verdict`.
"""
