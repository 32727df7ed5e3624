"""The pack stage of the Stagecoach pipeline."""
