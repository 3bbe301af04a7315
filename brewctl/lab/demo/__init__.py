"""The story as a play in six acts: five nodes, some orders, one kill -9 in the middle, and a verdict.

play plays it, recorder looks on and writes down, narration has the words, views and chart show it.
"""
