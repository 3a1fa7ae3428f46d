# shellcheck shell=bash disable=SC2154
# A wheel by the hash of its lock: from where pip of this machine looks, then from its own address.
#
# name: the wheel's file name. sha256. url: where it is if pip does not find it, or "".
IFS=- read -r project version _ <<<"$name"
# pip as Debian's python3-venv carries it, where it is not installed.
if ! python3 -c 'import pip' 2>/dev/null; then
  PYTHONPATH=$(python3 -c 'import ensurepip, pathlib
places = [pathlib.Path("/usr/share/python-wheels"), pathlib.Path(ensurepip.__file__).parent / "_bundled"]
print(next(str(wheel) for place in places for wheel in sorted(place.glob("pip-*.whl"))))')
  export PYTHONPATH
fi
export HOME=$PWD PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
printf '%s==%s --hash=sha256:%s\n' "$project" "$version" "$sha256" >wanted.txt
if python3 -m pip download --quiet --no-deps --only-binary :all: --require-hashes --dest got --requirement wanted.txt >said 2>&1; then
  mv got/*.whl "$out"
elif [ -n "$url" ]; then
  echo "pip finds no $name; taking $url" >&2
  python3 - "$name" "$url" "$out" <<'END'
import shutil, sys, urllib.request
name, url, out = sys.argv[1:]
try:
    with urllib.request.urlopen(url, timeout=60) as response, open(out, "wb") as file:
        shutil.copyfileobj(response, file, 1 << 20)
except OSError as error:
    raise SystemExit(
        f"error: {name} is neither where pip looks nor at {url} ({error})\n"
        "  fix: put the directory or index that has it into PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL"
    )
END
else
  cat said >&2
  printf 'error: pip finds no %s of the locked hash\n  fix: %s\n' "$name" \
    'see that pip reaches its index: python3 -m pip download --no-deps '"$project==$version" >&2
  exit 1
fi
