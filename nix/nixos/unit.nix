# The systemd services. Readiness is `enginix serve`'s: it notifies after the first generation succeeded.
self:
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  cfg = config.services.enginix;
  servers = lib.filterAttrs (_: s: s.enable) cfg.servers;
  parts = self.legacyPackages.${pkgs.stdenv.hostPlatform.system};
  escape = utils.escapeSystemdExecArgs;
  service = import ./service.nix { inherit lib escape; };
  trial = import ./trial.nix { inherit lib escape; };
  served = import ./served.nix { inherit lib parts; };
  image = import ./image.nix { inherit pkgs; };
  # Without an engine there is nothing to render; assertions.nix says so.
  complete = lib.filterAttrs (_: s: (s.engine != null) != (s.repo != null)) servers;
  render =
    name: s:
    let
      what = served s;
      root = if what.image == null then null else image what.image;
    in
    {
      inherit what root;
      service = service name s what root;
    };
  rendered = lib.mapAttrs render complete;
in
{
  config = lib.mkIf cfg.enable {
    networking.firewall.allowedTCPPorts = lib.concatMap (
      s:
      lib.optionals s.openFirewall (
        [ s.httpPort ] ++ lib.optional (!(served s).ownServer) s.grpcPort
      )
    ) (lib.attrValues complete);

    systemd.services = lib.mapAttrs' (
      name: r: lib.nameValuePair "enginix-${name}" r.service
    ) rendered;

    # A configuration that cannot be served is refused while the old servers still run. Arguments of the whole
    # script: the new system, and what is done with it.
    system.preSwitchChecks = lib.mapAttrs' (
      name: r:
      let
        s = servers.${name};
        enginix = lib.getExe s.package;
        list = lib.concatMapStringsSep "," toString s.gpus;
      in
      lib.nameValuePair "enginix-${name}" (
        lib.concatStringsSep "\n" (
          lib.optional (r.root == null && r.what.repo != null)
            "${enginix} serve ${r.what.repo} --tritonserver ${s.tritonserver} --dry-run >/dev/null"
          ++ lib.optional (s.gpus != [ ] && r.what.kind != "reference") "${enginix} check ${r.what.engine} >/dev/null"
          ++ lib.optional s.rollout.trial (
            lib.concatStringsSep " " (
              [
                "${enginix} rollout ${name} --incoming \"$1\"/etc/systemd/system --action \"\${2-switch}\""
                "--drop-in ${pkgs.writeText "enginix-trial-${name}.conf" (trial name s r.what r.root)}"
              ]
              ++ lib.optional (s.gpus != [ ]) "--gpus ${lib.escapeShellArg list}"
              ++ (
                let
                  plan = r.what.engine.request.plan or null;
                  needs =
                    if s.rollout.memory != null then
                      s.rollout.memory
                    else if s.gpus != [ ] && plan != null then
                      (plan.weights + plan.workspace) / 1048576
                    else
                      null;
                in
                if needs != null then
                  [ "--needs ${toString needs}" ]
                else
                  lib.optional (s.gpus == [ ]) "--engine ${r.what.repo}"
              )
              ++ [ ">/dev/null" ]
            )
          )
        )
        + "\n"
      )
    ) rendered;
  };
}
