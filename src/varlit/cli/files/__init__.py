"""Verbs that pack, convert, put together and check files: images, tokens, weights."""
