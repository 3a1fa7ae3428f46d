# Pins of runtime images.
{ arguments, ... }:
let
  isDigest = s: builtins.isString s && builtins.match "sha256:[0-9a-f]{64}" s != null;
in
{
  # What `enginix runtime pin` wrote, for this runtime and this system.
  # pin :: string -> string -> string -> set -> set
  pin =
    function: id: system: value:
    let
      pinned = arguments.only "${function}: pin" [
        "runtime"
        "image"
        "reference"
        "digest"
        "system"
        "hash"
        "environment"
        "status"
      ] value;
      again = "write it again with `enginix runtime pin ${id} --system ${system} -o runtime.json`.";
    in
    if pinned.runtime or null != id then
      throw (
        "${function}: the pin is of runtime ${builtins.toJSON (pinned.runtime or null)}, "
        + "not of ${id}; ${again}"
      )
    else if pinned.system or null != system then
      throw (
        "${function}: the pin is for ${builtins.toJSON (pinned.system or null)}, "
        + "this is ${system}; ${again}"
      )
    else if
      !isDigest (pinned.digest or null) || !(pinned ? hash && pinned ? reference && pinned ? image)
    then
      throw "${function}: the pin lacks digest, hash, reference or image; ${again}"
    else
      pinned;
}
