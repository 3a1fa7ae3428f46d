{
  description = "Stand-in for nixpkgs over the host's own tools; only what enginix's flake uses, for tests";
  outputs =
    { self }:
    let
      pkgs = import ./. { system = "x86_64-linux"; };
    in
    {
      inherit (pkgs) lib;
      legacyPackages.x86_64-linux = pkgs;
    };
}
