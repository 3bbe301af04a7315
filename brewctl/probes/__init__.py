"""What a process shows of itself to who looks from outside: whether its threads move, whether it can do its work."""
