# services.enginix: Triton servers as hardened systemd services.
self: {
  _class = "nixos";
  imports = [
    (import ./options.nix self)
    (import ./assertions.nix self)
    (import ./unit.nix self)
    (import ./gateway.nix self)
    ./monitoring.nix
    ./gpu-builder.nix
  ];
}
