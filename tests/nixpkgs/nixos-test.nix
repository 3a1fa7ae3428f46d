# As pkgs.testers.runNixOSTest, as far as evaluation goes: each node's configuration is evaluated
# over NixOS' option types, with its specialisations, and the test script is there to be read.
{ lib, pkgs }:
test:
let
  arguments = if builtins.isFunction test then test { inherit lib pkgs; } else test;
  nixos = import ./nixos.nix { inherit lib; };
  evaluate = modules: nixos.evaluate { inherit pkgs modules; };
  forced =
    result:
    if result.failing != [ ] then
      throw (builtins.concatStringsSep "\n" result.failing)
    else
      builtins.deepSeq [
        result.units
        result.preSwitch
      ] result;
  nodes = builtins.mapAttrs (
    _: node:
    let
      whole = forced (evaluate [ node ]);
    in
    whole
    // {
      specialisation = builtins.mapAttrs (
        _: s:
        forced (evaluate [
          node
          s.configuration
        ])
      ) whole.config.specialisation;
    }
  ) arguments.nodes;
  testScript =
    if builtins.isFunction arguments.testScript then arguments.testScript { inherit nodes; } else arguments.testScript;
in
pkgs.stdenv.mkDerivation {
  name = "vm-test-run-${arguments.name}";
  inherit testScript;
  # A node's units and checks are part of what is built.
  units = builtins.toJSON (
    builtins.mapAttrs (_: n: [ n.units ] ++ map (s: s.units) (builtins.attrValues n.specialisation)) nodes
  );
  passthru = { inherit nodes testScript; };
}
