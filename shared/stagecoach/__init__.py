"""What two or more parts of Stagecoach need: the stage contract, the store, the formats, the recipe."""
