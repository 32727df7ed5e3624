"""The ``stagecoach`` command; every sub-command imports what it needs when it runs, so that help comes at once."""
