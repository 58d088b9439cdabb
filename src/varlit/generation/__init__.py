"""Drawing pictures: one sampling loop over the scales that everything shares."""
