{
  description = "Answers as nixpkgs does where that decides whether enginix' flake evaluates; builds nothing, for tests";
  outputs =
    { self }:
    let
      lib = import ./lib.nix;
    in
    {
      inherit lib;
      legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system: import ./. { inherit system; });
    };
}
