# Ready models: name -> { model, checkpoint, engine, triton-repo, triton-server }. One file each, a
# function of the scope; and what `enginix pin` has pinned in this directory.
scope:
let
  stagesOf = import ./stages.nix scope;
  pinned = import ./pinned.nix scope ./.;
in
builtins.mapAttrs (
  name: file:
  let
    entry = import file scope;
  in
  stagesOf name (entry // { engine = pinned.withRuntime entry.engine; })
) (import ./entries.nix)
// builtins.mapAttrs stagesOf pinned.others
