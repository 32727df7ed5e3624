"""The Stagecoach pipeline: its graph, plan, runners and command line."""
