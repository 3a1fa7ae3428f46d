# shellcheck shell=bash disable=SC2154
# Runs inside of boot.sh's systemd: a server, a new generation that cannot answer, one that can. Ends at the first
# thing that is not as it should be.
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=/dev/null
source "$here/names" # enginix, metrics
port=8000
unit=enginix-tiny.service

fail() {
  echo "NOT SO: $*"
  systemctl status --no-pager --lines=30 'enginix-*' || true
  exit 1
}
pid() { systemctl show --property=MainPID --value "$unit"; }
answers() {
  curl -sf "http://127.0.0.1:$port/v2/models/ensemble/generate" -d '{"text_input":"Once","max_tokens":3}' | grep -q text_output
}
tries() { # directory of the incoming units, drop-in, arguments
  "$enginix" rollout tiny --incoming "$1" --current "$here/units" --drop-in "$2" "${@:3}" >"$here/tried" 2>&1
}
tells() { grep -qF -- "$1" "$here/tried" || { cat "$here/tried"; fail "rollout does not say: $1"; }; }
untouched() {
  [ "$(pid)" = "$old" ] || fail "another process after: $1"
  answers || fail "the old server does not answer after: $1"
  [ -z "$(ls /run/systemd/system)" ] || fail "left after: $1: $(ls /run/systemd/system)"
  ! systemctl is-active --quiet enginix-trial-tiny.service || fail "the trial still runs after: $1"
}
ip link set lo up

tries "$here/next" "$here/next/trial.conf" --engine "$here/bad"
tells 'nothing to lose'

systemctl start "$unit" || { journalctl --no-pager -n 40; fail 'it does not start'; }
old=$(pid)
answers || fail 'a started server does not answer'
grep -q '^CapEff:.*0000000000000000$' "/proc/$old/status" || fail 'it has capabilities'
grep -q '^NoNewPrivs:.*1$' "/proc/$old/status" || fail 'it may gain privileges'
grep -q '^Seccomp:.*2$' "/proc/$old/status" || fail 'no system call is filtered'
[ "$(stat -c %u "/proc/$old")" -ge 61184 ] || fail 'it has no user of its own'
journalctl --no-pager --output=json ENGINIX_SERVER=tiny | head -n 1 | grep -q '"MESSAGE"' || fail 'the journal has no such server'

# What the dashboard draws is what the server tells.
curl -sf http://127.0.0.1:8002/metrics >"$here/metrics"
for metric in $metrics; do
  grep -q "^$metric{" "$here/metrics" || fail "the dashboard draws $metric, which Triton does not tell"
done

tries "$here/units" "$here/next/trial.conf" --engine "$here/bad"
tells unchanged

# It loads, and continues the golden prefix with other tokens than its engine promises.
if tries "$here/broken" "$here/broken/trial.conf" --engine "$here/bad"; then fail 'a broken generation passed'; fi
tells 'the new generation did not start'
tells 'the old one still serves'
tells 'golden prefix'
untouched 'a broken generation'

tries "$here/next" "$here/next/trial.conf" --needs 99999999 || fail 'want of memory refuses the switch'
tells 'NO TRIAL: 99999999 MiB needed on this machine'
untouched 'want of memory'

# Killed in the middle of a trial; the next one tidies up.
"$enginix" rollout tiny --incoming "$here/next" --current "$here/units" --drop-in "$here/next/trial.conf" --needs 1 >/dev/null 2>&1 &
while ! systemctl is-active --quiet enginix-trial-tiny.service && [ "$(systemctl show -p ActiveState --value enginix-trial-tiny.service)" != activating ]; do
  kill -0 $! || fail 'the trial ended before it could be killed'
  sleep 0.1
done
kill -KILL $!
wait $! || true
tries "$here/next" "$here/next/trial.conf" --needs 1 || { cat "$here/tried"; fail 'a good generation is refused'; }
tells 'the new generation has answered'
untouched 'a good generation'

# What switch-to-configuration does then.
cp "$here/next/$unit" "$here/units/$unit"
systemctl daemon-reload
systemctl restart "$unit"
[ "$(pid)" != "$old" ] || fail 'it was not restarted'
answers || fail 'the new generation does not answer'

[ "$(systemctl show --property=TasksMax --value "$unit")" = 999 ] || fail 'it has another limit of tasks'
[ "$(systemctl show --property=MemoryMax --value "$unit")" = $((16 << 30)) ] || fail 'it has another limit of memory'
# Its shared memory is its own.
! ls /dev/shm/enginix-* >/dev/null 2>&1 || fail 'others see its shared memory'
nsenter --target "$(pid)" --mount ls /dev/shm | grep -q '^enginix-' || fail 'it has no shared memory'

# The gateway before it, with the keys of two files that root alone reads.
mkdir -m 700 /run/secrets
(umask 077 && echo the-key-of-the-operator >/run/secrets/operator && echo the-key-of-alice-0 >/run/secrets/alice)
systemctl start enginix-gateway.service || { journalctl --no-pager -n 40; fail 'the gateway does not start'; }
chats() { # key
  curl -s http://127.0.0.1:4000/v1/chat/completions -H "Authorization: Bearer $1" -H 'Content-Type: application/json' \
    -d '{"model":"tiny","messages":[{"role":"user","content":"Once"}],"max_tokens":3}'
}
chats the-key-of-alice-0 | tee "$here/tried" | grep -q completion_tokens || { cat "$here/tried"; fail 'the gateway does not answer'; }
! chats another-key-of-nobody | grep -q completion_tokens || fail 'the gateway answers anybody'
grep -q '^CapEff:.*0000000000000000$' "/proc/$(systemctl show -p MainPID --value enginix-gateway.service)/status" || fail 'the gateway has capabilities'
systemctl stop enginix-gateway.service
[ "$(systemctl show --property=Result --value enginix-gateway.service)" = success ] || fail 'the gateway did not end well'

systemctl stop "$unit"
[ "$(systemctl show --property=Result --value "$unit")" = success ] || fail 'it did not end well'

# One that would fail again, for its golden tokens are not its engine's, is not started again.
cp "$here/broken/$unit" "$here/units/$unit"
systemctl daemon-reload
! systemctl start "$unit" || fail 'a broken generation starts'
# A unit that waits for its next start is "activating".
[ "$(systemctl show --property=ActiveState,NRestarts --value "$unit" | xargs)" = '0 failed' ] ||
  [ "$(systemctl show --property=ActiveState,NRestarts --value "$unit" | xargs)" = 'failed 0' ] || fail 'it is started again and again'

# An engine's own server (a stand-in): started when it has answered to the key that systemd hands over.
(umask 077 && echo 'a-key-of-the-operator' >/run/secrets/key)
systemctl start enginix-own.service || { journalctl --no-pager -n 40; fail 'the own server does not start'; }
curl -sf -H 'Authorization: Bearer a-key-of-the-operator' http://127.0.0.1:8100/v1/models | grep -q stand-in || fail 'it does not know its key'
! tr '\0' '\n' <"/proc/$(systemctl show -p MainPID --value enginix-own.service)/cmdline" | grep -q a-key || fail 'the key is on a command line'
! grep -q a-key-of "$here/units/enginix-own.service" || fail 'the key is in the unit'
systemctl stop enginix-own.service
echo all as it should be
