# The part of the Python package that builds engines inside a runtime: standard library alone.
#
# `driver` has no command line: a new sub-command or help text must not build an engine again, which
# takes hours. `command` is for wrappers that check, run and serve.
{ pkgs, python, ... }@scope:
part:
let
  driver = [
    "data/machine"
    "data/models"
    "data/runtime"
    "data/tensorrt"
    "kinds/tensorrt/build"
    "machine"
    "model"
    "runtime"
  ];
  command = driver ++ [
    "cli/engines"
    "compatibility"
    "data/llmapi"
    "kinds/llmapi"
    "kinds/registry"
    "kinds/tensorrt"
    "registry"
  ];
in
import ../package.nix scope {
  name = "enginix-engine-${part}";
  folders = if part == "driver" then driver else command;
  inherit python;
  builder = ../builders/engine-package.sh;
  attributes = {
    main = if part == "driver" then "enginix.kinds.tensorrt.build.build_main" else "enginix.cli";
    bubblewrap = pkgs.bubblewrap or "";
  };
}
