"""The gateway's routes and their methods."""

from __future__ import annotations

from enginix.gateway.request import ROUTES

MODELS = "/v1/models"
HEALTH = ("/health/live", "/health/ready")
METRICS = "/metrics"
READING = ("GET", "HEAD")


def list_methods(path: str) -> tuple[str, ...]:
    """Return the methods of a route; none where there is no such route."""
    if path in ROUTES:
        return ("POST",)
    return READING if path in (MODELS, METRICS, *HEALTH) or path.startswith(f"{MODELS}/") else ()
