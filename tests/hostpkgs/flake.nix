{
  description = "Stand-in for nixpkgs over the host's own tools; only what enginix's flake uses, for tests";
  outputs =
    { self }:
    let
      # tests/nix puts nixpkgs' own lib there, to evaluate against the real one.
      lib = if builtins.pathExists ./nixpkgs-lib then import ./nixpkgs-lib else import ./lib.nix;
    in
    {
      inherit lib;
      legacyPackages.x86_64-linux = import ./. {
        system = "x86_64-linux";
        inherit lib;
      };
    };
}
