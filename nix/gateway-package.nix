# The enginix command that is the gateway, over a Python that has LiteLLM: no torch, no Triton.
{ pkgs, enginix-core, ... }@scope:
import ./package.nix scope {
  name = "enginix-gateway-${enginix-core.version}";
  python = scope.gateway-python or pkgs.gateway-python or (import ./gateway-python.nix scope);
  kept = [
    "__init__.py"
    "__main__.py"
    "cli.py"
    "commands/__init__.py"
    "commands/gateway.py"
    "console.py"
    "data/__init__.py"
    "data/openai.json"
    "errors.py"
    "openai"
    "process.py"
    "serve/__init__.py"
    "serve/notify.py"
    "serve/ports.py"
    "tables.py"
  ];
}
