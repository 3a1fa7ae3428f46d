# The trial of a server beside the running one: a drop-in for a copy of its unit (enginix rollout).
#
# Free ports of loopback, directories of its own, one start. The rest is the unit's.
{ lib, escape }:
name: server: served: image:
let
  service = import ./service.nix { inherit lib escape; };
  trial = "trial-${name}";
  # Port 0 takes a free one; for the engine's own server enginix rollout fills one in.
  trialService =
    (service trial (
      server
      // {
        host = "127.0.0.1";
        httpPort = if served.ownServer then "@port@" else 0;
        grpcPort = 0;
        metricsPort = 0;
      }
    ) served image).serviceConfig;
  keys = [
    "CacheDirectory"
    "RuntimeDirectory"
    "StateDirectory"
    "WorkingDirectory"
    "IPAddressDeny"
    "IPAddressAllow"
  ];
in
''
  [Service]
  ExecStart=
  ExecStart=${trialService.ExecStart}
  Restart=no
  Environment="HOME=%C/enginix-${trial}" "XDG_CACHE_HOME=%C/enginix-${trial}"
  LogExtraFields=ENGINIX_SERVER=${trial}
''
# An empty assignment first: these are lists, and the unit's own entry would stay.
+ lib.concatLines (
  map (key: "${key}=\n${key}=${toString trialService.${key}}") (
    builtins.filter (key: trialService ? ${key}) keys
  )
)
