"""What a run of the lab records while it plays: samples, owners of partitions, faults, events."""
