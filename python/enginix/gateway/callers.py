"""LiteLLM's custom authentication: the key is checked already; this passes caller and server to LiteLLM."""

from __future__ import annotations

from typing import Any

from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth

from enginix.gateway.exchange import DEPLOYMENT, SCOPE
from enginix.gateway.keys import Caller


async def authenticate(request: Any, api_key: str) -> UserAPIKeyAuth:
    """Return the caller in LiteLLM's form.

    Raises:
        ProxyException: the request did not come through the auth middleware.
    """
    caller = request.scope.get(SCOPE)
    if not isinstance(caller, Caller):
        raise ProxyException(message="not authenticated", type="auth_error", param=None, code=401)
    return UserAPIKeyAuth(
        api_key=f"client {caller.name}",
        key_alias=caller.name,
        user_role=LitellmUserRoles.INTERNAL_USER,
        # The middleware has checked the client's models and limits; this request is for one server alone.
        models=[request.scope[DEPLOYMENT]],
    )
