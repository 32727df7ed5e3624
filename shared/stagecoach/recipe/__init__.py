"""The whole-run configuration: one section a stage, each a frozen model that refuses unknown fields."""
