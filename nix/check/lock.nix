{ lib, ... }:
let
  isHex = length: s: builtins.isString s && builtins.match "[0-9a-f]{${toString length}}" s != null;
in
rec {
  # A Hub repository name: owner/name, or a bare name of the Hub's early days.
  # repo :: string -> string -> string
  repo =
    function: name:
    if builtins.isString name && builtins.match "([A-Za-z0-9._-]+/)?[A-Za-z0-9._-]+" name != null then
      name
    else
      throw "${function}: repo = ${builtins.toJSON name} is not a Hub repository name (owner/name).";

  # A commit; a branch or tag would make the build depend on the day.
  # revision :: string -> string -> string -> string
  revision =
    function: repository: rev:
    if isHex 40 rev then
      rev
    else
      throw ''
        ${function}: revision = ${builtins.toJSON rev} of ${repository} is not a commit; a branch or tag can move.
        Do one of these:
          - pin it: `enginix lock ${repository} --revision ${toString rev} -o model.lock.json`, then mkHfModel { lock = ./model.lock.json; }
          - pass the 40-digit commit as revision, with the hash of the whole repository'';

  # Path rules of a lock: what may become a file below one directory on any file system.
  # path :: string -> string -> string
  path =
    where: p:
    let
      segments = builtins.filter builtins.isString (builtins.split "/" p);
      # Builders read links a line each: a newline in a path would be the next one.
      plain = builtins.match "[^\\[:cntrl:]]*" p != null;
      bad = !plain || builtins.any (s: s == "" || s == "." || s == ".." || lib.toLower s == ".git") segments;
    in
    if p == "enginix.json" then
      throw "${where}: the path enginix.json is the manifest's own; lock the model without that file (--exclude)."
    else if bad then
      throw "${where}: the path ${builtins.toJSON p} would not stay inside the model's directory."
    else
      p;

  # A parsed lock, every field that Nix relies on checked.
  # parse :: string -> set -> set
  parse =
    where: lock:
    let
      version = lock.version or null;
      files = lock.files or { };
      file =
        name: entry:
        if !isHex 64 (entry.sha256 or null) then
          throw "${where}: ${name} has no sha256 of 64 hex digits; write the lock again with `enginix lock`."
        else if !builtins.isInt (entry.size or null) then
          throw "${where}: ${name} has no size; write the lock again with `enginix lock`."
        else
          entry // { path = path where name; };
    in
    if version != 1 then
      throw "${where}: lock version ${builtins.toJSON version}, but this enginix reads version 1; write it again with `enginix lock`."
    else if files == { } then
      throw "${where}: the lock lists no files; write it again with `enginix lock`."
    else
      {
        type =
          let
            type = lock.type or "model";
          in
          if builtins.elem type [ "model" "dataset" ] then
            type
          else
            throw "${where}: type ${builtins.toJSON type} is neither \"model\" nor \"dataset\"; write the lock again with `enginix lock`.";
        repo = repo where (lock.repo or null);
        revision = revision where (lock.repo or "?") (lock.revision or null);
        license = lock.license or null;
        gated = lock.gated or false;
        model = lock.model or { };
        files = builtins.mapAttrs file files;
      };
}
