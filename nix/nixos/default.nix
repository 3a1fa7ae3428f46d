# services.enginix: one Triton server as a hardened systemd service.
self: {
  _class = "nixos";
  imports = [
    (import ./options.nix self)
    ./assertions.nix
    ./unit.nix
  ];
}
