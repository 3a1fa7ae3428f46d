# Which parts exist for this system: not every wheel is made for every one.
{ torch, ... }@scope:
let
  readLock = import ./read-lock.nix scope;
  missing =
    name: builtins.filter (wheel: wheel != "torch" || torch == null) (readLock name).missing;
in
builtins.listToAttrs (
  map
    (name: {
      inherit name;
      value = missing name == [ ];
    })
    [
      "core"
      "runtime"
      "modelopt"
      "edgellm"
      "rtx"
      "gateway"
      "tritonserver"
    ]
)
