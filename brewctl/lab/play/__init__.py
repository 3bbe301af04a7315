"""Roles as processes: the cast, nodes that the lab starts and ends, background nodes, and their logs."""
