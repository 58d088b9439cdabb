"""What settings come from and may ask for: read before anything runs."""
