# The systemd services. `enginix serve` notifies readiness after the first generation succeeded.
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  cfg = config.services.enginix;
  inherit (import ./servers.nix { inherit lib; } cfg) complete;
  escape = utils.escapeSystemdExecArgs;
  sshKeygen = "${pkgs.openssh}/bin/ssh-keygen";
  service = import ./service.nix { inherit lib escape sshKeygen; };
  trial = import ./trial.nix { inherit lib escape; };
  served = import ./served.nix {
    inherit lib;
    parts = cfg.scope;
  };
  image = import ./image.nix { inherit pkgs; };
  preSwitch = import ./pre-switch.nix { inherit lib pkgs; };
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
      name: r:
      lib.nameValuePair "enginix-${name}" (
        r.service
        # NixOS makes PATH of `path`. An image has its own tools, and a user may set PATH by hand.
        // lib.optionalAttrs (r.service.environment ? PATH) { path = lib.mkForce [ ]; }
      )
    ) rendered;

    # A configuration that cannot be served is refused while the old servers still run.
    system.preSwitchChecks = lib.mapAttrs' (
      name: r:
      lib.nameValuePair "enginix-${name}" (
        preSwitch {
          inherit name;
          inherit (r) what root;
          server = complete.${name};
          trial = trial name complete.${name} r.what r.root;
        }
      )
    ) rendered;
  };
}
