"""Images and token caches: what the networks are fed, and in which order.

Start at `module.py` (global batch, ranks, loaders); `order.py` decides who sees what when.
"""
