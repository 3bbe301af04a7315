"""Probes of a running process: whether its threads move (/livez), and whether it can do its work (/readyz)."""
