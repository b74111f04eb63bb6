"""The scheduler on a model of a device, in virtual time."""
