"""The tables: which the migrations make, which are missing, how they are added, and which roles may use them.

Read `parts` first: it takes the migrations apart. Then `versions` (how far a database is) and `completion` (adds what
is missing); `partitioning` (a table gets partitions while roles work); `registration` and `homes` (the downstreams'
own tables and databases); `grants`; last `setup`, which is `brewctl db init`.
"""
