# shellcheck shell=bash disable=SC2154
# Sourced by the builders whose output is a command: the one place that says how a command starts.

# Writes $out/bin/NAME, a script of the given lines. The last one is a command and its arguments;
# exec runs it with the caller's arguments behind them, so that those win over the ones built in.
write_launcher() { # name, line ...
  mkdir -p "$out/bin"
  printf '%s\n' "#!$bash/bin/bash" "${@:2:$#-2}" "exec ${!#} \"\$@\"" >"$out/bin/$1"
  chmod +x "$out/bin/$1"
}

# Prints the line that gives enginix the package $bubblewrap, unless the caller sets another.
bubblewrap_line() {
  printf '%s\n' "export ENGINIX_BWRAP=\${ENGINIX_BWRAP:-$bubblewrap/bin/bwrap}"
}

# Copies the package $source to $out/lib, and compiles it for $python: a store path is read only, and
# without bytecode every start would compile the modules again.
install_package() {
  mkdir -p "$out/lib"
  cp -r "$source" "$out/lib/enginix"
  chmod -R u+w "$out/lib"
  "$python/bin/python3" -m compileall -q --invalidation-mode unchecked-hash "$out/lib"
}

# Writes $out/bin/enginix, which runs a function of a module with $python. The script that it starts is
# a file of its own: with `-m`, Python would put the caller's directory first on the module path,
# where a folder named triton or torch would stand before the library.
write_package_launcher() { # module or module:function, module path behind $out/lib, line ...
  local function=main
  [[ $1 != *:* ]] || function=${1#*:}
  mkdir -p "$out/libexec"
  printf 'from %s import %s as run\n\nraise SystemExit(run())\n' "${1%:*}" "$function" >"$out/libexec/launch.py"
  write_launcher enginix \
    "export PYTHONPATH=$out/lib$2 PYTHONDONTWRITEBYTECODE=1" \
    "${@:3}" \
    "$python/bin/python3 $out/libexec/launch.py"
}
