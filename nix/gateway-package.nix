# The enginix command that is the gateway, over a Python that has LiteLLM: no torch, no Triton.
{ enginix-core, gateway-python, ... }@scope:
import ./package.nix scope {
  name = "enginix-gateway-${enginix-core.version}";
  python = gateway-python;
  folders = [
    "cli/gateway"
    "data/gateway"
    "gateway"
  ];
}
