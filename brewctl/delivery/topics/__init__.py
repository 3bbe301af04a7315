"""The topic and its dead-letter topic: made, kept for how long, and who may use them."""
