"""The train stage of the Stagecoach pipeline."""
