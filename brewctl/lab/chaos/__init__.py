"""Chaos: faults under load, by a plan, and a verdict on what the system made of them."""
