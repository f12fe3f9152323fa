"""One loop for all stages and models; a stage differs by config only."""
