"""What ``python3 start.py`` does: sets the course up, opens it, tests it, brings it to a new version."""
