"""The tables: what the migrations say, what is missing, how it is added; who may use them, and in which database."""
