"""The LightningModules of both stages, their optimizers, schedules and averages."""
