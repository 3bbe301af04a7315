"""What belongs to the whole flow, not to one replica, as metrics: `brewctl metrics`.

    scrape ──► collector ──► lookers: one thread a server, which keeps its connection
                               └── questions: each is asked again as seldom as its cost demands

A server that is away, or a question that fails, costs its own series: they are left out, never old, never zero.
"""
