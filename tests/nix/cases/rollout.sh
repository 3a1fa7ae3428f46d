# shellcheck shell=bash disable=SC2154,SC2016,SC2034
# The module's units under a real systemd: readiness, hardening, and a new generation tried before the old one ends.

need_booted_systemd() {
  local unified
  unified=$(findmnt -n -o TARGET -t cgroup2 | head -n 1)
  if [ "$(id -u)" != 0 ] || [ ! -x /lib/systemd/systemd ] || [ ! -w "${unified:-/nowhere}" ] || ! command -v bwrap >/dev/null; then
    skip 'this needs root, systemd, bubblewrap and cgroup2'
    return 77
  fi
}

# A unit and the drop-in of its trial, into a directory.
generation() { # arguments of tests/nix/unit.nix, directory
  mkdir -p "$2" && unit "$1" "$2/enginix-${3-tiny}.service" || return 1
  quietly "$nix" eval --impure --raw --expr "\"\${(import $root/tests/nix/unit.nix { $1 }).trial}\"" || return 1
  install -m 644 "$(tail -n 1 "$out")" "$2/trial.conf"
}

test_rollout_under_systemd() {
  slow || return
  need_booted_systemd || return
  local place
  place=$(mktemp -d /var/tmp/enginix-systemd.XXXXXX)
  quietly "$nix" build --out-link "$tmp/repo" .#tiny-qwen3-triton-repo || return 1
  # The same repository with other golden tokens: it loads, and is not what it says.
  cp -rL "$tmp/repo" "$place/bad" && chmod -R u+w "$place/bad" && chmod 755 "$place" &&
    python3 - "$place/bad/enginix.json" <<'PY' || return 1
import json, sys
m = json.load(open(sys.argv[1]))
m["results"]["golden"]["tokens"] = [t ^ 1 for t in m["results"]["golden"]["tokens"]]
json.dump(m, open(sys.argv[1], "w"))
PY
  mkdir -p "$place/own/bin" && cp tests/nix/systemd/standin_server.py "$place/own/" &&
    printf '#!/bin/bash\nexec python3 "${0%%/bin/*}/standin_server.py" "$@"\n' >"$place/own/bin/serve" &&
    chmod +x "$place/own/bin/serve" || return 1
  # A unit has a /tmp and a /var/tmp of its own: what it reads is in the store.
  local bad own
  bad=$(nix-store --add "$place/bad") && own=$(nix-store --add "$place/own") || return 1
  generation 'settings.startTimeout = 60;' "$place/units" &&
    generation 'settings = { startTimeout = 60; exitTimeout = 31; memoryMax = "16G"; tasksMax = 999; };' "$place/next" &&
    generation "settings = { startTimeout = 60; repo = { outPath = \"$bad\"; kind = \"reference\"; runtime = \"reference\"; }; };" "$place/broken" &&
    generation "name = \"own\"; settings = { httpPort = 8100; startTimeout = 60; apiKeyFile = \"/run/secrets/key\"; engine = {
        outPath = \"/x-engine\"; kind = \"edgellm\"; runtime = \"edgellm-0.11.0\"; modelName = \"m\"; }; };
      parts.mkServe = _: { outPath = \"$own\"; meta.mainProgram = \"serve\"; };" "$place/units" own || return 1
  # shellcheck disable=SC2154
  unit "$unit_gateway" "$place/units/enginix-gateway.service" || return 1
  quietly "$nix" build --out-link "$tmp/enginix" .#enginix || return 1
  # Metrics of GPUs are there where there is one.
  printf 'enginix=%s/bin/enginix\nmetrics="%s"\n' "$(readlink -f "$tmp/enginix")" \
    "$(grep -oE 'enginix_server_[a-z_]*|nv_inference_[a-z_]*' nix/nixos/dashboard/enginix.json | sort -u | tr '\n' ' ')" >"$place/names"
  cp tests/nix/systemd/rollout.sh "$place/"
  quietly tests/nix/systemd/boot.sh "$place" "$place/rollout.sh"
  local status=$?
  cat "$place/log" "$place/boot" >"$out" 2>&1
  rm -rf "$place"
  [ $status -eq 0 ] && says 'all as it should be'
}
