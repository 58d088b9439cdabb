"""What keeps a run alive: its devices, processes, lock, checkpoints, and how it goes on."""
