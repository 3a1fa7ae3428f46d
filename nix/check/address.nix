# Addresses that servers listen on.
let
  wildcards = {
    "0.0.0.0" = "127.0.0.1";
    "::" = "::1";
  };
in
{
  # Whether a server at this address is reached from its own machine only.
  # isLoopback :: string -> bool
  isLoopback = host: host == "127.0.0.1" || host == "::1";

  # host:port by which its own machine reaches a server, for URLs: a wildcard address becomes
  # loopback, an IPv6 address stands in brackets.
  # local :: string -> int|string -> string
  local =
    host: port:
    let
      reachable = wildcards.${host} or host;
      isIpv6 = builtins.match ".*:.*" reachable != null;
    in
    "${if isIpv6 then "[${reachable}]" else reachable}:${toString port}";
}
