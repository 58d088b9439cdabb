"""`varlit doctor`: what a long run would break on, found before it starts."""
