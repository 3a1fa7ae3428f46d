# nixpkgs' LiteLLM with what its proxy imports at start. Not its extra `proxy` as a whole: that has LiteLLM's
# enterprise parts, which are not free software.
{ pkgs, lib, ... }:
pkgs.python3.withPackages (
  ps:
  let
    free = builtins.filter (p: lib.getName p != "litellm-enterprise");
  in
  [
    ps.litellm
    ps.httpx
    ps.uvicorn
    ps.uvloop
  ]
  ++ free (ps.litellm.optional-dependencies.proxy or [ ])
)
