"""The demo: a play in six acts, with five nodes, orders, one kill -9, and a verdict.

play runs it, recorder records it, narration has its texts, views and text_chart show it.
"""
