"""The download stage of the Stagecoach pipeline."""
