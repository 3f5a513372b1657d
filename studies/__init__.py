"""Further techniques, one script each: `python -m studies.NAME`."""
