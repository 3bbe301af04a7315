"""Programs that run the roles as `brewctl` processes, disturb and measure them, and show what happens.

Read `play` first (nodes, servers), then `load` and `network` (orders, network faults), `record` and `report` (samples,
charts), then the four that use these: `demo`, `top`, `chaos`, `bench`.
"""
