"""`varlit info`: parameters, operations, memory and steps, found without a GPU."""
