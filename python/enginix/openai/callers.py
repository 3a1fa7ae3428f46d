"""LiteLLM's custom authentication: the gate has looked at the key already; this says the client's limits."""

from __future__ import annotations

from typing import Any

from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth

from enginix.openai.gate import SCOPE
from enginix.openai.keys import Caller


async def authenticate(request: Any, api_key: str) -> UserAPIKeyAuth:
    """What LiteLLM counts and limits by.

    Raises:
        ProxyException: the request has not come through the gate.
    """
    caller = request.scope.get(SCOPE)
    if not isinstance(caller, Caller):
        raise ProxyException(message="not authenticated", type="auth_error", param=None, code=401)
    client = caller.client
    return UserAPIKeyAuth(
        # What LiteLLM counts by, and names in its errors.
        api_key=f"client {caller.name}",
        key_alias=caller.name,
        user_role=LitellmUserRoles.INTERNAL_USER,
        models=list(client.models) if client else [],
        rpm_limit=client.requests_per_minute or None if client else None,
        tpm_limit=client.tokens_per_minute or None if client else None,
    )
