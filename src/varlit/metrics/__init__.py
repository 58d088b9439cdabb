"""Measures of reconstructions, codebooks and samples: what a run is judged by.

May import models and ops; never losses, data, viz or generation. Metrics that hold a network are
plain objects, so that no checkpoint or moving average of a LightningModule sees it.
"""
