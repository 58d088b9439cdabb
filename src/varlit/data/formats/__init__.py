"""Where images come from: one file for each format, all handing out the same: rows of a split."""
