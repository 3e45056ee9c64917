"""Files that are whole or not there, folders that one run holds for itself, and what the system lets a process use."""
