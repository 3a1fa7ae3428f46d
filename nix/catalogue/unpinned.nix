# A model of the catalogue whose lock may not be known yet.
#
# With `<name>.lock.json` beside its entry it is an ordinary model. Without, everything evaluates,
# so that the flake can be shown and checked as a whole, and building anything of it fails at once
# with the one command that writes the lock. No hash is invented.
{
  mkHfModel,
  pkgs,
  lib,
  check,
  ...
}:
{
  # Of the entry; the lock is looked for under it.
  name,
  repo,
  # A commit that public sources name, or null; `enginix lock` follows main then.
  revision ? null,
  # Of a `git lfs clone` without .git, where it was published; a store that has the path serves it.
  hash ? null,
  # As the model's name gives them, so that evaluation can refuse a GPU that cannot run it.
  architecture,
  quantization ? null,
  license ? null,
  # Whether a licence must be accepted on the Hub first.
  gated ? false,
  # Further advice for a person who wants to build it.
  note ? "",
}:
let
  lock = ./. + "/${name}.lock.json";
in
if builtins.pathExists lock then
  mkHfModel { inherit name lock; }
else
  pkgs.stdenvNoCC.mkDerivation (
    {
      name = "${name}-model";
      buildCommandPath = ./unpinned.sh;
      inherit repo note;
      revision = if revision == null then "" else revision;
      hash = if hash == null then "" else hash;
      entry = name;
      gated = if gated then "yes" else "";
      preferLocalBuild = true;
      passthru = {
        inherit
          repo
          revision
          license
          architecture
          quantization
          gated
          ;
        modelName = name;
        # No lock: it builds only where a store has it already.
        locked = false;
        model = { inherit architecture quantization; };
      };
      meta = {
        description = "${repo}: run first: nix run .#pin -- ${name}";
        homepage = "https://huggingface.co/${repo}";
        platforms = import ../systems.nix;
      }
      // lib.optionalAttrs (license != null) { license = check.license.named license; };
    }
    // lib.optionalAttrs (hash != null) {
      outputHashMode = "recursive";
      outputHash = hash;
    }
  )
