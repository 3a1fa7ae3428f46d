# nixpkgs' LiteLLM with what its proxy imports at start. Not its extra `proxy` as a whole: that has LiteLLM's
# enterprise parts, which are not free software.
{ pkgs, lib, ... }:
pkgs.python3.withPackages (
  ps:
  let
    unfree = [
      "litellm-enterprise"
      "litellm-proxy-extras"
    ];
    free = builtins.filter (p: !builtins.elem (lib.getName p) unfree);
  in
  [
    ps.litellm
    ps.httpx
    ps.uvicorn
    ps.uvloop
  ]
  ++ free (ps.litellm.optional-dependencies.proxy or [ ])
)
