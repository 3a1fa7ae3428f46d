# The checks before the machine switches to a generation with this server: one shell command, which
# fails with the first of its parts that fails. "$1" is the new system, "$2" the action (switch,
# test, boot, …).
{ lib, pkgs }:
{
  name,
  server,
  # Output of served.nix.
  what,
  # The root of a server inside an image (image.nix), null for others.
  root,
  # The drop-in of a trial (trial.nix).
  trial,
}:
let
  enginix = lib.getExe server.package;
  hasGpu = server.gpus != [ ];
  gpus = lib.concatMapStringsSep "," toString server.gpus;
  plan = what.engine.request.plan or null;
  # MiB that a second server beside the running one needs.
  needs =
    if server.rollout.memory != null then
      server.rollout.memory
    else if hasGpu && plan != null then
      (plan.weights + plan.workspace) / 1048576
    else
      null;
  memory =
    if needs != null then
      [ "--needs ${toString needs}" ]
    else
      lib.optional (!hasGpu) "--engine ${what.repo}";

  # The repository, its engine and this tritonserver fit.
  fits = "${enginix} serve ${what.repo} --tritonserver ${server.tritonserver} --dry-run >/dev/null";

  # The engine against GPU and driver of this machine as it runs now. For `boot`, and where
  # nixos-install writes another machine, the generation will run with others: it may bring the
  # driver that the engine needs.
  check = lib.concatStringsSep " " [
    "case \"\${2-switch}\" in"
    "switch | test) ${enginix} check ${what.engine} >/dev/null ;;"
    "esac"
  ];

  # The new unit beside the running one; it looks at the action by itself.
  rollout = lib.concatStringsSep " " (
    [
      "${enginix} rollout ${name} --incoming \"$1\"/etc/systemd/system --action \"\${2-switch}\""
      "--drop-in ${pkgs.writeText "enginix-trial-${name}.conf" trial}"
    ]
    ++ lib.optional hasGpu "--gpus ${lib.escapeShellArg gpus}"
    ++ memory
    ++ [ ">/dev/null" ]
  );

  parts =
    lib.optional (root == null && what.repo != null) fits
    ++ lib.optional (hasGpu && !what.isPortable) check
    ++ lib.optional server.rollout.trial rollout;
in
# nixpkgs has run these texts with and without errexit, also inside a condition, where bash ignores
# it: `&&` works in all.
lib.concatStringsSep " &&\n" (if parts == [ ] then [ "true" ] else parts) + "\n"
