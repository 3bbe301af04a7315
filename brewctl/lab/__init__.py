"""What drives the roles from outside, as `brewctl` processes, and shows what they do.

Read `play` first (nodes, servers), then `load` and `network` (what is done to them), `record` and `report` (what is
kept and drawn), then one of the four that use these: `demo`, `top`, `chaos`, `bench`.
"""
