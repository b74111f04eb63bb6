"""Loads on a live server, and what became of their requests."""
