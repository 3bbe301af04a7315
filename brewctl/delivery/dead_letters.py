"""Dead letters, read and settled."""
