# The systemd services. Readiness is `enginix serve`'s: it notifies after the first generation succeeded.
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
  service = import ./service.nix {
    inherit lib;
    escape = utils.escapeSystemdExecArgs;
  };
  image = import ./image.nix { inherit pkgs; };
  imageOf =
    s: if (s.repo.kind or "reference") == "reference" then null else image s.repo.engine.runtimePackage;
in
{
  config = lib.mkIf cfg.enable {
    networking.firewall.allowedTCPPorts = lib.concatMap (
      s:
      lib.optionals s.openFirewall [
        s.httpPort
        s.grpcPort
      ]
    ) (lib.attrValues servers);

    systemd.services = lib.mapAttrs' (
      name: s: lib.nameValuePair "enginix-${name}" (service name s (imageOf s))
    ) servers;

    # A configuration that cannot be served is refused while the old servers still run.
    system.preSwitchChecks = lib.mapAttrs' (
      name: s:
      lib.nameValuePair "enginix-${name}" ''
        ${lib.getExe s.package} serve ${s.repo} --tritonserver ${s.tritonserver} --dry-run >/dev/null
      ''
    ) (lib.filterAttrs (_: s: imageOf s == null) servers);
  };
}
