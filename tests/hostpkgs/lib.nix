# The functions of nixpkgs' lib that enginix's own Nix code calls, and no others.
let
  inherit (builtins)
    attrNames
    concatStringsSep
    elemAt
    filter
    foldl'
    genList
    isString
    length
    listToAttrs
    map
    match
    replaceStrings
    split
    stringLength
    substring
    ;
in
rec {
  inherit concatStringsSep foldl' replaceStrings;
  mod = a: b: a - b * (a / b);
  genAttrs = names: f: listToAttrs (map (n: nameValuePair n (f n)) names);
  nameValuePair = name: value: { inherit name value; };
  mapAttrs' = f: set: listToAttrs (map (n: f n set.${n}) (attrNames set));
  mapAttrsToList = f: set: map (n: f n set.${n}) (attrNames set);
  filterAttrs = keep: set: listToAttrs (map (n: nameValuePair n set.${n}) (filter (n: keep n set.${n}) (attrNames set)));
  optionalAttrs = on: set: if on then set else { };
  optionals = on: list: if on then list else [ ];
  optional = on: value: if on then [ value ] else [ ];
  optionalString = on: text: if on then text else "";
  concatMapStringsSep = sep: f: list: concatStringsSep sep (map f list);
  concatLines = list: concatMapStringsSep "" (l: l + "\n") list;
  hasPrefix = p: s: substring 0 (stringLength p) s == p;
  removePrefix = p: s: if hasPrefix p s then substring (stringLength p) (-1) s else s;
  removeSuffix = p: s: if hasSuffix p s then substring 0 (stringLength s - stringLength p) s else s;
  splitString = sep: s: filter isString (split (replaceStrings [ "." "+" ] [ "[.]" "[+]" ] sep) s);
  hasSuffix = p: s: stringLength s >= stringLength p && substring (stringLength s - stringLength p) (-1) s == p;
  toLower = replaceStrings upperChars lowerChars;
  upperChars = [ "A" "B" "C" "D" "E" "F" "G" "H" "I" "J" "K" "L" "M" "N" "O" "P" "Q" "R" "S" "T" "U" "V" "W" "X" "Y" "Z" ];
  lowerChars = [ "a" "b" "c" "d" "e" "f" "g" "h" "i" "j" "k" "l" "m" "n" "o" "p" "q" "r" "s" "t" "u" "v" "w" "x" "y" "z" ];
  escapeShellArg = arg: "'${replaceStrings [ "'" ] [ "'\\''" ] (toString arg)}'";
  escapeShellArgs = concatMapStringsSep " " escapeShellArg;
  importJSON = path: builtins.fromJSON (builtins.readFile path);
  getName = p: p.pname or (parseName p.name);
  parseName = name: (builtins.parseDrvName name).name;
  getExe = drv: "${drv}/bin/${drv.meta.mainProgram or drv.name}";
  fakeHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
  # The part of the real list that the catalogue's models carry.
  getLicenseFromSpdxIdOr = id: default: { inherit default; "apache-2.0" = licenses.asl20; }.${toLower id} or default;
  licenses.asl20 = {
    spdxId = "Apache-2.0";
    fullName = "Apache License 2.0";
    free = true;
  };
  licenses.bsd3 = {
    spdxId = "BSD-3-Clause";
    fullName = "BSD 3-clause \"New\" or \"Revised\" License";
    free = true;
  };
  licenses.nvidiaCudaRedist = {
    fullName = "CUDA EULA, redistributable";
    free = false;
    redistributable = true;
  };
  sourceTypes = {
    fromSource.isSource = true;
    binaryNativeCode.isSource = false;
  };
  systems.flakeExposed = [ "x86_64-linux" ];
  strings = {
    sanitizeDerivationName =
      s:
      let
        clean = concatStringsSep "-" (
          filter isString (split "[^0-9A-Za-z+._?=-]+" (builtins.head (match "[.]*(.*)" s)))
        );
      in
      if clean == "" then "unknown" else substring 0 207 clean;
    levenshtein =
      a: b:
      let
        chars = s: genList (i: substring i 1 s) (stringLength s);
        min = x: y: if x < y then x else y;
        row =
          prev: ca:
          foldl' (
            done: j:
            done
            ++ [
              (min (min (elemAt done j + 1) (elemAt prev (j + 1) + 1)) (
                elemAt prev j + (if ca == elemAt (chars b) j then 0 else 1)
              ))
            ]
          ) [ (builtins.head prev + 1) ] (genList (j: j) (stringLength b));
      in
      elemAt (foldl' row (genList (i: i) (stringLength b + 1)) (chars a)) (stringLength b);
  };
  fetchers.proxyImpureEnvVars = [
    "http_proxy"
    "https_proxy"
    "ftp_proxy"
    "all_proxy"
    "no_proxy"
  ];
  warn = message: builtins.trace "warning: ${message}";
  runTests = tests: filter (t: t.expected != t.result) (
    map (name: {
      inherit name;
      inherit (tests.${name}) expected;
      result = tests.${name}.expr;
    }) (filter (n: hasPrefix "test" n) (attrNames tests))
  );
}
