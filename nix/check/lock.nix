{ lib, ... }:
let
  table = lib.importJSON ../../python/enginix/data/lock.json;
  isHex = length: s: builtins.isString s && builtins.match "[0-9a-f]{${toString length}}" s != null;

  # Whether the name says that the file is a pickle, which can run code when it is read.
  # isPickle :: string -> bool
  isPickle = path: builtins.any (suffix: lib.hasSuffix suffix (lib.toLower path)) table.pickles;

  # Two paths that cannot both exist where the case of ASCII letters does not count, or of which one is a file where the
  # other needs a directory; [ ] where there are none. `enginix lock` and `enginix fetch` compare Unicode, too.
  # clash :: [string] -> [string]
  clash =
    paths:
    let
      groups = builtins.groupBy lib.toLower paths;
      twins = builtins.filter (g: builtins.length g > 1) (builtins.attrValues groups);
      above =
        p:
        let
          segments = builtins.filter builtins.isString (builtins.split "/" (lib.toLower p));
          upTo = n: builtins.concatStringsSep "/" (builtins.genList (builtins.elemAt segments) n);
        in
        builtins.genList (n: upTo (n + 1)) (builtins.length segments - 1);
      inside = builtins.concatMap (p: map (d: [ (builtins.head groups.${d}) p ]) (builtins.filter (d: groups ? ${d}) (above p))) paths;
      both = twins ++ inside;
    in
    if both == [ ] then [ ] else builtins.head both;
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
      again = "write the lock again with `enginix lock`.";
      # The first name that is not known, or null.
      unknown =
        known: set:
        let
          others = builtins.attrNames (removeAttrs set known);
        in
        if others == [ ] then null else builtins.head others;
      strange = unknown table.keys lock;
      select = lock.select or null;
      strangeSelect = if select == null then null else unknown table.selectKeys select;
      both = clash (builtins.attrNames files);
      file =
        name: entry:
        if isPickle name then
          throw "${where}: ${name} is in a pickle format, which can run code when it is read; lock a repository with safetensors, or exclude the file."
        else if !isHex 64 (entry.sha256 or null) then
          throw "${where}: ${name} has no sha256 of 64 hex digits; write the lock again with `enginix lock`."
        else if !builtins.isInt (entry.size or null) then
          throw "${where}: ${name} has no size; write the lock again with `enginix lock`."
        else if unknown table.fileKeys entry != null then
          throw "${where}: ${name} has an unknown key ${builtins.toJSON (unknown table.fileKeys entry)}; ${again}"
        else
          entry // { path = path where name; };
    in
    if version != 1 then
      throw "${where}: lock version ${builtins.toJSON version}, but this enginix reads version 1; write it again with `enginix lock`."
    else if strange != null then
      throw "${where}: unknown key ${builtins.toJSON strange}; ${again}"
    else if strangeSelect != null then
      throw "${where}: unknown key ${builtins.toJSON strangeSelect} in select; ${again}"
    else if files == { } then
      throw "${where}: the lock lists no files; write it again with `enginix lock`."
    else if both != [ ] then
      throw "${where}: ${builtins.toJSON (builtins.elemAt both 0)} and ${builtins.toJSON (builtins.elemAt both 1)} cannot both exist where case does not count; lock the model without one of them (--exclude)."
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
        license =
          let
            license = lock.license or null;
          in
          if license == null || builtins.isString license then
            license
          else
            throw "${where}: license ${builtins.toJSON license} is neither a text nor null; ${again}";
        gated =
          let
            gated = lock.gated or false;
          in
          if builtins.elem gated [ false "auto" "manual" ] then
            gated
          else
            throw "${where}: gated ${builtins.toJSON gated} is not false, \"auto\" or \"manual\"; ${again}";
        model = lock.model or { };
        files = builtins.mapAttrs file files;
      };
}
