# Stands in for nixpkgs' utils.escapeSystemdExecArgs (nixos/lib/utils.nix, which is not part of its lib): an argument
# in double quotes with C escapes, `%` and `$` doubled, as systemd.service(5) wants it.
args:
builtins.concatStringsSep " " (
  map (arg: builtins.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON arg)) args
)
