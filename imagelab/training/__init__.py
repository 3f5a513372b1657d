"""A run that can be stopped and resumed: its loop, its checkpoints."""
