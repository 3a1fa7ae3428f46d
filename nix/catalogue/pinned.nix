# directory -> what `enginix pin` has pinned there:
#
#   NAME.lock.json      a model
#   NAME.engine.json    arguments of mkEngine, for a model that is not of the catalogue
#   RUNTIME.pin.json    the image of a runtime
{
  lib,
  mkHfModel,
  mkRuntime,
  ...
}@scope:
directory:
let
  catalogue = import ./entries.nix;
  files = builtins.readDir directory;
  namesWith =
    suffix:
    map (lib.removeSuffix suffix) (
      builtins.filter (lib.hasSuffix suffix) (builtins.attrNames files)
    );
  modelOf =
    name:
    mkHfModel {
      inherit name;
      lock = directory + "/${name}.lock.json";
    };
  # An engine's runtime by its pin, where there is one.
  withRuntime =
    engine:
    let
      id = engine.runtime or "trtllm-1.2.1";
      pin = directory + "/${id}.pin.json";
      hasRuntime = builtins.elem engine.kind [ "tensorrt" "llmapi" ];
    in
    if hasRuntime && builtins.isString id && builtins.pathExists pin then
      engine // { runtime = mkRuntime { inherit id pin; }; }
    else
      engine;
  isLocked = name: files ? "${name}.lock.json";
in
{
  inherit withRuntime;

  # Models of the catalogue with a lock here: their entries, with this model.
  ofCatalogue = builtins.mapAttrs (
    name: file:
    let
      entry = import file scope;
    in
    entry
    // {
      model = modelOf name;
      engine = withRuntime entry.engine;
    }
  ) (lib.filterAttrs (name: _: isLocked name) catalogue);

  # Other models.
  others = lib.genAttrs (builtins.filter isLocked (namesWith ".engine.json")) (name: {
    model = modelOf name;
    engine = withRuntime (lib.importJSON (directory + "/${name}.engine.json"));
  });
}
