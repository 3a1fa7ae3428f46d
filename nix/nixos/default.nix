# services.enginix: Triton servers as hardened systemd services.
#
# Everything is imported by its path, so that a module that several of a host's modules import is
# one module, and every message and option names its file.
{
  _class = "nixos";
  imports = [
    ./options.nix
    ./assertions.nix
    ./unit.nix
    ./gateway.nix
    ./monitoring.nix
    ./gpu-builder.nix
  ];
}
