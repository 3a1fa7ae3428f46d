"""LiteLLM's configuration, rendered from a gateway's description."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from enginix.gateway.spec import BackendServer, GatewaySpec

PROVIDER = "enginix"
# LiteLLM up to 1.92 loads the module of such a name from a file beside the configuration only.
MODULE = "enginix_in_litellm"
MODULE_SOURCE = "from enginix.gateway.handler import authenticate, handler\n"


def render_litellm_config(spec: GatewaySpec, key: Callable[[str], str]) -> dict[str, Any]:
    """Return the configuration.

    Args:
        key: returns the environment variable with the key of a file, as LiteLLM reads it.
    """
    router: dict[str, Any] = {
        # The balancer chooses servers: LiteLLM's router fails over only before a custom handler's stream
        # begins.
        "num_retries": 0,
        "disable_cooldowns": True,
        "timeout": spec.limits.silence_seconds,
    }
    if spec.aliases:
        router["model_group_alias"] = dict(spec.aliases)
    return {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": _render_deployment(server, key),
                "model_info": {"id": deployment_id(name, number, len(servers))},
            }
            for name, servers in spec.models.items()
            for number, server in enumerate(servers)
        ],
        "router_settings": router,
        "litellm_settings": {
            "custom_provider_map": [{"provider": PROVIDER, "custom_handler": f"{MODULE}.handler"}],
            "drop_params": False,
            "modify_params": False,
            "telemetry": False,
            "num_retries": 0,
            # Else only the first four texts of stop reach a server of kind openai.
            "disable_stop_sequence_limit": True,
        },
        "general_settings": {
            "custom_auth": f"{MODULE}.authenticate",
            "disable_spend_logs": True,
            "disable_error_logs": True,
            "disable_master_key_return": True,
        },
    }


def deployment_id(model: str, number: int, count: int) -> str:
    """Return LiteLLM's name for one server of a model; model names have no #."""
    return model if count == 1 else f"{model}#{number}"


def _render_deployment(server: BackendServer, key: Callable[[str], str]) -> dict[str, Any]:
    if server.kind == "triton":
        return {"model": f"{PROVIDER}/{server.model}", "api_base": server.url}
    parameters = {"model": f"openai/{server.model}", "api_base": server.url}
    # The openai client requires a key; servers without keys ignore it.
    parameters["api_key"] = f"os.environ/{key(server.key_file)}" if server.key_file else "none"
    return parameters


def name_key_variable(path: str) -> str:
    """Return the name of the variable for a key file, within the gateway's own process."""
    return "ENGINIX_KEY_" + "".join(f"{b:02X}" for b in path.encode("utf-8"))
