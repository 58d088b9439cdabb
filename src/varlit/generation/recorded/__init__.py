"""Drawing fast on CUDA: recorded once, replayed by a single launch."""
