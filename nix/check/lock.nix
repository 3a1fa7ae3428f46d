{ lib, arguments, ... }:
let
  table = lib.importJSON ../../python/enginix/data/conversion/lock.json;
  letters = builtins.attrNames table.letters;
  isHex = length: s: builtins.isString s && builtins.match "[0-9a-f]{${toString length}}" s != null;

  # A text with every letter beyond ASCII that evaluation knows as one ASCII character, so that
  # characters can be counted and the rest be refused.
  # plain :: string -> string
  plain = builtins.replaceStrings letters (map (_: "x") letters);

  # A text as it compares where case does not count.
  # fold :: string -> string
  fold = s: lib.toLower (builtins.replaceStrings letters (builtins.attrValues table.letters) s);

  # A printable text of at most so many characters. Evaluation knows ASCII and the letters of the
  # table; an invisible character, or one that could be written in two ways, is in neither.
  # isText :: int -> any -> bool
  isText =
    longest: s:
    builtins.isString s
    && builtins.stringLength (plain s) <= longest
    && builtins.match "[ -~]*" (plain s) != null;

  # has :: string -> string -> bool
  has = part: s: builtins.replaceStrings [ part ] [ "" ] s != s;

  # As far as a lock's facts may nest (DEEPEST_FACT in hub/lock.py).
  # isFact :: int -> any -> bool
  isFact =
    depth: value:
    if builtins.isString value then
      isText 1000 value
    else if builtins.isAttrs value then
      depth > 0
      && builtins.all (k: isText 1000 k && isFact (depth - 1) value.${k}) (builtins.attrNames value)
    else if builtins.isList value then
      depth > 0 && builtins.all (isFact (depth - 1)) value
    else
      builtins.elem (builtins.typeOf value) [ "null" "bool" "int" "float" ];

  # Every field at once, and not when it is used: a lock is refused as a whole.
  # strict :: set -> set
  strict = set: builtins.deepSeq set set;

  # Whether a file is a pickle by its name, which can run code when it is read.
  # isPickle :: string -> bool
  isPickle = path: builtins.any (suffix: lib.hasSuffix suffix (lib.toLower path)) table.pickles;

  # Two paths that cannot both exist where case does not count, or of which one is a file where the
  # other needs a directory; [ ] without such a pair.
  # clash :: [string] -> [string]
  clash =
    paths:
    let
      groups = builtins.groupBy fold paths;
      twins = builtins.filter (g: builtins.length g > 1) (builtins.attrValues groups);
      above =
        p:
        let
          segments = builtins.filter builtins.isString (builtins.split "/" (fold p));
          upTo = n: builtins.concatStringsSep "/" (builtins.genList (builtins.elemAt segments) n);
        in
        builtins.genList (n: upTo (n + 1)) (builtins.length segments - 1);
      filesAbove = p: builtins.filter (directory: groups ? ${directory}) (above p);
      clashesOf =
        p:
        map (directory: [
          (builtins.head groups.${directory})
          p
        ]) (filesAbove p);
      inside = builtins.concatMap clashesOf paths;
      clashing = twins ++ inside;
    in
    if clashing == [ ] then [ ] else builtins.head clashing;
in
rec {
  # A Hub repository name: owner/name, or a bare name of the Hub's early days.
  # repo :: string -> string -> string
  repo =
    function: name:
    let
      # As huggingface_hub's validate_repo_id, and never a path.
      isName =
        builtins.isString name
        && builtins.match "([A-Za-z0-9_][A-Za-z0-9_.-]*/)?[A-Za-z0-9_][A-Za-z0-9_.-]*" name != null
        && builtins.all (part: builtins.stringLength part <= 96) (
          builtins.filter builtins.isString (builtins.split "/" name)
        )
        && !has ".." name
        && !has "--" name
        && !lib.hasSuffix "." name
        && !lib.hasSuffix "-" name;
    in
    if isName then
      name
    else
      throw (
        "${function}: repo = ${arguments.describe name} is not a Hub repository name "
        + "(owner/name)."
      );

  # A commit; a branch or tag would make the build depend on the day.
  # revision :: string -> string -> string -> string
  revision =
    function: repository: rev:
    let
      movable =
        "revision = ${builtins.toJSON rev} of ${repository} is not a commit; "
        + "a branch or tag can move.";
      command = "enginix lock ${repository} --revision ${toString rev} -o model.lock.json";
    in
    if isHex 40 rev then
      rev
    else
      throw ''
        ${function}: ${movable}
        Do one of these:
          - pin it: `${command}`, then mkHfModel { lock = ./model.lock.json; }
          - pass the 40-digit commit as revision, with the hash of the whole repository'';

  # Path rules of a lock: what may become a file below one directory on any file system.
  # path :: string -> string -> string
  path =
    where: p:
    let
      segments = builtins.filter builtins.isString (builtins.split "/" p);
      isAbsolute = lib.hasPrefix "/" p || builtins.match ".:.*" (plain p) != null;
      isHostile =
        isAbsolute
        || builtins.any (s: s == "" || s == "." || s == ".." || fold s == ".git") segments;
    in
    if !isText 1024 p || has "\\" p then
      throw (
        "${where}: the path ${builtins.toJSON p} is longer than 1024 characters, or has a "
        + "character that evaluation does not take; lock the model without that file (--exclude)."
      )
    else if builtins.any (s: builtins.stringLength s > 255) segments then
      throw (
        "${where}: the path ${builtins.toJSON p} has a segment longer than 255 bytes; lock the "
        + "model without that file (--exclude)."
      )
    else if isHostile then
      throw "${where}: the path ${builtins.toJSON p} would not stay inside the model's directory."
    else if fold (builtins.head segments) == "enginix.json" then
      throw (
        "${where}: the path ${p} is the manifest's own name; "
        + "lock the model without that file (--exclude)."
      )
    else
      p;

  # A parsed lock, every field that Nix relies on checked.
  # parse :: string -> set -> set
  parse =
    where: lock:
    let
      version = lock.version or null;
      files = lock.files or null;
      model = lock.model or { };
      type = lock.type or "model";
      again = "write the lock again with `enginix lock`.";
      # The first name that is not known, or null.
      unknown =
        known: set:
        let
          others = builtins.attrNames (removeAttrs set known);
        in
        if others == [ ] then null else builtins.head others;
      unknownKey = unknown table.keys lock;
      select = lock.select or null;
      unknownSelectKey = if !builtins.isAttrs select then null else unknown table.selectKeys select;
      isPatterns =
        list: builtins.isList list && builtins.all (word: word != "" && isText 1024 word) list;
      isSelect =
        select == null
        || (
          builtins.isAttrs select
          && isPatterns [ (select.revision or "main") ]
          && isPatterns (select.include or [ ])
          && isPatterns (select.exclude or [ ])
          && builtins.isBool (select.remoteCode or false)
        );
      clashing = clash (builtins.attrNames files);
      file =
        name: entry:
        if !builtins.isAttrs entry then
          throw "${where}: ${name} does not have exactly sha256 and size; ${again}"
        else if isPickle name then
          throw (
            "${where}: ${name} is in a pickle format, which can run code when it is read; lock a "
            + "repository with safetensors, or exclude the file."
          )
        else if !isHex 64 (entry.sha256 or null) then
          throw (
            "${where}: ${name} has no sha256 of 64 hex digits; "
            + "write the lock again with `enginix lock`."
          )
        else if
          !builtins.isInt (entry.size or null) || entry.size < 0 || entry.size > 1125899906842624
        then
          throw "${where}: ${name} has no size in bytes; write the lock again with `enginix lock`."
        else if (entry.size == 0) != (entry.sha256 == builtins.hashString "sha256" "") then
          throw "${where}: size and sha256 of ${name} contradict each other; ${again}"
        else if unknown table.fileKeys entry != null then
          throw (
            "${where}: ${name} has an unknown key "
            + "${builtins.toJSON (unknown table.fileKeys entry)}; ${again}"
          )
        else
          entry // { path = path where name; };
    in
    if !builtins.isInt version || version != 1 then
      throw (
        "${where}: lock version ${builtins.toJSON version}, but this enginix reads version 1; "
        + "write it again with `enginix lock`."
      )
    else if unknownKey != null then
      throw "${where}: unknown key ${builtins.toJSON unknownKey}; ${again}"
    else if unknownSelectKey != null then
      throw "${where}: unknown key ${builtins.toJSON unknownSelectKey} in select; ${again}"
    else if !isSelect then
      throw "${where}: select is not {revision, include, exclude, remoteCode} of texts; ${again}"
    else if !builtins.isAttrs model || !isFact 4 model then
      throw "${where}: model is not an object of plain facts; ${again}"
    else if type == "dataset" && !has "/" (repo where (lock.repo or null)) then
      throw "${where}: the dataset ${lock.repo} has no owner; ${again}"
    else if !builtins.isAttrs files || files == { } then
      throw "${where}: the lock lists no files; write it again with `enginix lock`."
    else if !builtins.all (name: files ? ${name}) (builtins.attrNames files) then
      # Nix 2.8 reads a path with NUL, and names it by what precedes; later ones refuse the text.
      throw "${where}: a path has a NUL character; ${again}"
    else if clashing != [ ] then
      throw (
        "${where}: ${builtins.toJSON (builtins.elemAt clashing 0)} and "
        + "${builtins.toJSON (builtins.elemAt clashing 1)} cannot both exist where case does not "
        + "count; lock the model without one of them (--exclude)."
      )
    else
      strict {
        type =
          if builtins.elem type [ "model" "dataset" ] then
            type
          else
            throw (
              "${where}: type ${builtins.toJSON type} is neither \"model\" nor \"dataset\"; write "
              + "the lock again with `enginix lock`."
            );
        repo = repo where (lock.repo or null);
        revision = revision where (lock.repo or "?") (lock.revision or null);
        license =
          let
            license = lock.license or null;
          in
          if license == null || isText 200 license then
            license
          else
            throw (
              "${where}: license ${builtins.toJSON license} is neither a short text nor null; "
              + "${again}"
            );
        gated =
          let
            gated = lock.gated or false;
          in
          if builtins.elem gated [ false "auto" "manual" ] then
            gated
          else
            throw (
              "${where}: gated ${builtins.toJSON gated} is not false, "
              + "\"auto\" or \"manual\"; ${again}"
            );
        inherit model;
        files = builtins.mapAttrs file files;
      };
}
