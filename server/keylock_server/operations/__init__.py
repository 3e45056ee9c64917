"""Running a server: starting, stopping, one process or several, metrics and traces."""
