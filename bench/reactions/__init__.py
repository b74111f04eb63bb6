"""How soon a live server reacts."""
