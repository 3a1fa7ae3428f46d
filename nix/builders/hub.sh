# shellcheck shell=bash disable=SC2154
# Sourced by the fetching builders: the hub to fetch from, and the token for it.

# A model that comes with a flake is served by its own hub on loopback, unless HF_ENDPOINT names
# another.
if [ -z "${HF_ENDPOINT-}" ] && [ -n "$hub" ]; then
  "$hub" --port-file "$NIX_BUILD_TOP/hub-port" >"$NIX_BUILD_TOP/hub.log" 2>&1 &
  hub_process=$!
  trap 'kill "$hub_process" 2>/dev/null || true' EXIT
  until [ -s "$NIX_BUILD_TOP/hub-port" ]; do
    if ! kill -0 "$hub_process" 2>/dev/null; then
      cat "$NIX_BUILD_TOP/hub.log" >&2
      exit 1
    fi
    sleep 0.05
  done
  HF_ENDPOINT=http://127.0.0.1:$(<"$NIX_BUILD_TOP/hub-port")
fi
# Impure variables are set even where the caller's are not; an empty one would be used as a value.
if [ -n "${HF_ENDPOINT-}" ]; then export HF_ENDPOINT; else unset HF_ENDPOINT; fi
if [ -z "${HF_TOKEN-}" ]; then unset HF_TOKEN; fi
export HF_HOME=$NIX_BUILD_TOP/hf
