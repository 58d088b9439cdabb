"""What every benchmark shares: a stopwatch, memory, FLOPs, the table, the common flags."""
