# The enginix command that is the gateway, over a Python that has LiteLLM: no torch, no Triton.
{ enginix-core, gateway-python, ... }@scope:
import ./package.nix scope {
  name = "enginix-gateway-${enginix-core.version}";
  python = gateway-python;
  kept = [
    "__init__.py"
    "__main__.py"
    "cli.py"
    "commands/__init__.py"
    "commands/gateway.py"
    "console.py"
    "credentials.py"
    "data/__init__.py"
    "data/openai.json"
    "data/triton_errors.json"
    "errors.py"
    "openai"
    "optional_libraries.py"
    "process.py"
    "serve/__init__.py"
    "serve/notify.py"
    "serve/ports.py"
    "tables.py"
    "wording.py"
  ];
}
