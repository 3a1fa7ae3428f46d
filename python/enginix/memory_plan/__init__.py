"""Estimate from headers whether a model fits a GPU, and the resources that building its engine needs."""
