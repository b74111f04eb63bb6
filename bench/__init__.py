"""Measurements: programs that print one JSON object as their last line."""
