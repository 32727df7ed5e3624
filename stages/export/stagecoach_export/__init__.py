"""The export stage of the Stagecoach pipeline."""
