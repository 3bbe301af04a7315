"""The roles of the story: one file and one `run` each. A role blocks until `stop` is set, then drains.

`workers.py` is no role: it runs one in several processes.
"""
