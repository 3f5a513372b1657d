"""How a script starts and ends: its command line, settings, device, files."""
