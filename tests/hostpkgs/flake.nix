{
  description = "Stand-in for nixpkgs over the host's own tools; only what enginix's flake uses, for tests";
  outputs =
    { self }:
    {
      lib = import ./lib.nix;
      legacyPackages.x86_64-linux = import ./. { system = "x86_64-linux"; };
    };
}
