"""Pictures of which a part is given: edits, larger canvases, coarse scales."""
