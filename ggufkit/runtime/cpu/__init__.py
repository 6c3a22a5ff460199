"""Running a model on the CPU."""
