# What differs where a server is tried beside the running one: a drop-in of a copy of its unit (enginix rollout).
#
# Free ports of loopback, directories of its own, one start. Everything else is the unit's.
{ lib, escape }:
name: server: served: image:
let
  service = import ./service.nix { inherit lib escape; };
  trial = "trial-${name}";
  # Port 0 takes a free one; the engine's own server is told which (enginix rollout fills it in).
  changed =
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
  ExecStart=${changed.ExecStart}
  Restart=no
  Environment="HOME=%C/enginix-${trial}" "XDG_CACHE_HOME=%C/enginix-${trial}"
  LogExtraFields=ENGINIX_SERVER=${trial}
''
# An empty assignment first: these are lists, and the unit's own entry would stay.
+ lib.concatLines (
  map (key: "${key}=\n${key}=${toString changed.${key}}") (builtins.filter (key: changed ? ${key}) keys)
)
