"""The demonstration: real models trained on real or generated requests."""
