"""Metrics of the whole flow, not of one replica: `brewctl metrics`.

    scrape ──► collector ──► lookers: one thread for each server, which keeps its connection
                               └── questions: the more one costs, the less often it is asked

While a server is away, or a question fails, its series are left out. They never show an old value, or zero.
"""
