"""The pipeline: one module a stage, and the few modules that they share."""
