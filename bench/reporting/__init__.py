"""What becomes of a measurement: JSON, pages, comparisons."""
