"""Commands that need the bucket alone: no database, no server, no cluster."""
