# shellcheck shell=bash disable=SC2154
# Runs inside of boot.sh's systemd: a server inside an image (a stand-in) with Triton's OpenAI frontend in tritonserver's place,
# and a trial of its next generation. Ends at the first thing that is not as it should be.
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=/dev/null
source "$here/names" # enginix
unit=enginix-front.service
key=the-key-of-the-frontend-0

fail() {
  echo "NOT SO: $*"
  systemctl status --no-pager --lines=30 'enginix-*' || true
  exit 1
}
chats() { # key
  curl -s http://127.0.0.1:9000/v1/chat/completions -H "Authorization: Bearer $1" \
    -d '{"model":"ensemble","messages":[{"role":"user","content":"Once"}]}'
}
ip link set lo up
mkdir -m 700 /run/secrets
(umask 077 && echo "$key" >/run/secrets/frontend)

systemctl start "$unit" || { journalctl --no-pager -n 40; fail 'it does not start'; }
pid=$(systemctl show --property=MainPID --value "$unit")
chats "$key" | grep -q 'stand-in: Once' || fail 'it does not answer to its key'
chats another-key-of-nobody | grep -q invalid_auth || fail 'it answers anybody'
curl -sf http://127.0.0.1:8000/v2/models/ensemble/generate -d '{"text_input":"Once"}' | grep -q 'stand-in: Once' || fail 'no KServe beside it'
[ -e "/proc/$pid/root/opt/tritonserver/TRITON_VERSION" ] || fail 'its root is not the image'
grep -q '^CapEff:.*0000000000000000$' "/proc/$pid/status" || fail 'it has capabilities'
! grep -q "$key" "$here/units/$unit" || fail 'the key is in the unit'
! tr '\0' '\n' <"/proc/$pid/environ" | grep -q "$key" || fail 'the key is in its environment'
! journalctl --no-pager | grep -q "$key" || fail 'the key is in the journal'

# Of port 9000 and the credential a trial needs no second one.
"$enginix" rollout front --incoming "$here/next" --current "$here/units" --drop-in "$here/next/trial.conf" --needs 1 >"$here/tried" 2>&1 ||
  { cat "$here/tried"; fail 'a good generation is refused'; }
grep -q 'the new generation has answered' "$here/tried" || fail 'there was no trial'
if "$enginix" rollout front --incoming "$here/broken" --current "$here/units" --drop-in "$here/broken/trial.conf" --needs 1 >"$here/tried" 2>&1; then
  fail 'a broken generation passed'
fi
grep -q 'main.py is missing' "$here/tried" || { cat "$here/tried"; fail 'the trial does not say why'; }
[ "$(systemctl show --property=MainPID --value "$unit")" = "$pid" ] || fail 'another process after the trials'
chats "$key" | grep -q 'stand-in: Once' || fail 'the old server does not answer after the trials'

systemctl stop "$unit"
[ "$(systemctl show --property=Result --value "$unit")" = success ] || fail 'it did not end well'
echo all as it should be
