"""What two or more scripts teach with: networks, attacks, schedules."""
