# shellcheck shell=bash disable=SC2154
# shellcheck source=nix/builders/launcher.sh
source "$launcher"
write_launcher "$command" \
  "export ENGINIX_TRITONSERVER=\${ENGINIX_TRITONSERVER:-$tritonserver}" \
  "export ENGINIX_GATEWAY_PYTHON=\${ENGINIX_GATEWAY_PYTHON:-$gatewayPython/bin/python3}" \
  "export ENGINIX_QUANTIZE_PYTHON=\${ENGINIX_QUANTIZE_PYTHON:-$quantizePython/bin/python3}" \
  "$enginix/bin/enginix $command"
