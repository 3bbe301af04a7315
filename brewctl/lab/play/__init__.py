"""The roles as processes that the lab starts: the cast of the story, nodes, background nodes, and their logs."""
