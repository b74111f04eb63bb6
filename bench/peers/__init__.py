"""Others on the same weights, and ours beside them."""
