"""The shard stage of the Stagecoach pipeline."""
