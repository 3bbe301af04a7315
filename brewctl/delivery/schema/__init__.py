"""The schema: which tables the migrations make, which are missing, how they are added, and which roles may use them.

Read `parts` first: it parses the migrations. Then `versions` (which migrations a database has) and `completion` (adds
what is missing); `partitioning` (a table gets partitions while roles work); `registration` and `homes` (the
downstreams' own tables and databases); `grants`; last `setup`, which is `brewctl db init`.
"""
