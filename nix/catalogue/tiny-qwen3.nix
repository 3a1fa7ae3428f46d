# A model of about two million parameters that comes with this repository: for demo, tests and a
# first look. Its files are served by a hub of its own on loopback, so that the first stage is the
# one that every model has.
{
  mkHfModel,
  pkgs,
  python,
  ...
}:
{
  model = mkHfModel {
    lock = ../../tests/models/tiny-qwen3.lock.json;
    hub = pkgs.stdenvNoCC.mkDerivation {
      name = "hub";
      buildCommandPath = ../builders/hub-of-files.sh;
      inherit (pkgs) bash;
      launcher = ../builders/launcher.sh;
      python3 = python;
      server = ../../tests/hub;
      files = ../../tests/models/tiny-qwen3;
      repo = "enginix/tiny-qwen3";
      preferLocalBuild = true;
      meta.mainProgram = "hub";
    };
  };
  engine.kind = "reference";
}
