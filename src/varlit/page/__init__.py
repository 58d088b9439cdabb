"""The local web page: pick, draw, watch the picture grow, paint over a part and draw it anew."""
