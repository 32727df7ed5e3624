"""Chat files of every common kind, turned into conversations of one form."""
