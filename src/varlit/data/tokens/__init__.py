"""The token cache: its manifest, who writes it, who reads it, who checks it."""
