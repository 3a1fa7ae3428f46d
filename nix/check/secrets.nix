# Secrets stay outside the store, which every user of a machine can read.
{ lib }:
rec {
  # Whether a secret's file is in the store, or is a path that Nix would copy there.
  # inStore :: path|string|null -> bool
  inStore = file: builtins.isPath file || lib.hasPrefix builtins.storeDir (toString file);

  # A secret's file, refused where the store would have it.
  # outsideStore :: string -> string -> path|string|null -> string|null
  outsideStore =
    function: argument: file:
    if inStore file then
      throw (
        "${function}: ${argument} = ${toString file} would be in the store, where everybody reads "
        + "it; pass the path as a string to a file outside."
      )
    else
      file;
}
