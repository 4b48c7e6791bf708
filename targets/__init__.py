"""What every kind of board has in common, and one folder per kind of board."""
