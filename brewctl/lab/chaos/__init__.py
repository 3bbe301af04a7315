"""Chaos: inject planned faults under load, then check that no order was lost and no effect doubled."""
