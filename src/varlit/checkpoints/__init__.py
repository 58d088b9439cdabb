"""Files in and out: find a run, load its models, names of the official weights."""
