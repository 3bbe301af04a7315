"""The recording of a demo or chaos run: samples, partition owners, faults, events."""
