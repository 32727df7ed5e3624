"""The convert stage of the Stagecoach pipeline."""
