# services.enginix: Triton servers as hardened systemd services.
self: {
  _class = "nixos";
  imports = [
    (import ./options.nix self)
    ./assertions.nix
    ./unit.nix
    ./monitoring.nix
    ./gpu-builder.nix
  ];
}
