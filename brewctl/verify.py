"""Whether the flow kept its promises, from the sources."""
