"""Soak: the whole digits pipeline under random kills, compared with one that nobody disturbed."""
