"""Chat data that the project wrote itself, so that the first run needs no download."""
