#!/bin/bash
# Makes the stand-in Python of a runtime: python.sh FILE PYTHON-WITH-THE-WHEEL MISBEHAVE|'' ENGINIX-PYTHON
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cat >"$1" <<END
#!/bin/sh
# Stand-in.
export PYTHONPATH=$here:$4 PYTHONDONTWRITEBYTECODE=1 STANDIN_MISBEHAVE=$3
exec $2 "\$@"
END
chmod +x "$1"
