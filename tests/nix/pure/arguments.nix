# Arguments of functions, flags, secrets, addresses, licences.
{ lib, check }:
let
  fails = import ../fails.nix;
  flagsOf = check.flags.words {
    where = "f";
    name = "p";
    it = "p";
    option = "--flag";
  };
  flagRows = {
    count.type = "int";
    rate.type = "float";
    on.type = "bool";
    bare.type = "switch";
    text.type = "string";
    list = {
      type = "string";
      repeatable = true;
    };
    late = {
      type = "int";
      since = "2.10.0";
    };
    mine = {
      type = "int";
      own = "elsewhere";
    };
    shut = {
      type = "int";
      refused = "no";
    };
  };
in
{
  testNearestName = {
    expr = check.names.nearest "tensorParalel" [
      "dtype"
      "tensorParallel"
    ];
    expected = [ "tensorParallel" ];
  };
  testNothingNear = {
    expr = check.names.nearest "zzzz" [ "dtype" ];
    expected = [ ];
  };
  testUnknownNamesAll = {
    expr = check.names.unknown "kind" "tensort" [
      "reference"
      "tensorrt"
    ];
    expected = ''unknown kind "tensort". Did you mean tensorrt? Known: reference, tensorrt.'';
  };
  testOnlyAccepts = {
    expr = check.arguments.only "f" [ "a" ] { a = 1; };
    expected.a = 1;
  };
  testOnlyRefuses = {
    expr = fails (check.arguments.only "f" [ "a" ] { b = 1; });
    expected = true;
  };
  testCallPassesArguments = {
    expr = check.arguments.call "f" ({ a, b ? 2 }: a + b) { a = 1; };
    expected = 3;
  };
  testCallRefusesAnArgumentThatThePatternLacks = {
    expr = fails (check.arguments.call "f" ({ a }: a) { a = 1; b = 2; });
    expected = true;
  };
  testSecretInStore = {
    expr = map check.secrets.inStore [
      ./arguments.nix
      "${builtins.storeDir}/x-key"
      "/run/secrets/key"
      "operator"
      null
    ];
    expected = [ true true false false false ];
  };
  testSecretOutsideStore = {
    expr = check.secrets.outsideStore "f" "keyFile" "/run/secrets/key";
    expected = "/run/secrets/key";
  };
  testSecretOutsideStoreRefuses = {
    expr = map (file: fails (check.secrets.outsideStore "f" "keyFile" file)) [
      ./arguments.nix
      "${builtins.storeDir}/x-key"
    ];
    expected = [ true true ];
  };
  testLoopback = {
    expr = map check.address.isLoopback [ "127.0.0.1" "::1" "0.0.0.0" "::" "10.0.0.1" ];
    expected = [ true true false false false ];
  };
  testLocalAddress = {
    expr = map (host: check.address.local host 8000) [ "127.0.0.1" "0.0.0.0" "::" "fd00::1" "gpu1" ];
    expected = [ "127.0.0.1:8000" "127.0.0.1:8000" "[::1]:8000" "[fd00::1]:8000" "gpu1:8000" ];
  };
  testOneOfAccepts = {
    expr = check.arguments.oneOf "f" "dtype" [ "float16" ] "float16";
    expected = "float16";
  };
  testOneOfRefuses = {
    expr = fails (check.arguments.oneOf "f" "dtype" [ "float16" ] "fp16");
    expected = true;
  };
  testAtLeastAccepts = {
    expr = check.arguments.atLeast "f" "n" 1 1;
    expected = 1;
  };
  testAtLeastRefusesLess = {
    expr = fails (check.arguments.atLeast "f" "n" 1 0);
    expected = true;
  };
  testMinutes = {
    expr = map (n: fails (check.arguments.minutes "f" "n" n)) [ 0 (-5) 0.05 30 "30" null ];
    expected = [ true true false false true true ];
  };
  testBetween = {
    expr = map (n: fails (check.arguments.between "f" "n" 1 3 n)) [ 0 1 3 4 "2" ];
    expected = [ true false false true true ];
  };
  testLicenseOfSpdx = {
    expr = (check.license.named "apache-2.0").spdxId;
    expected = "Apache-2.0";
  };
  # Neither free nor not: nixpkgs then evaluates what bears it.
  testLicenseThatSpdxDoesNotKnow = {
    expr =
      let
        license = check.license.named "llama3.1";
      in
      [
        license.shortName
        (license ? free)
        (lib.hasPrefix "Licence \"llama3.1\"" license.fullName)
      ];
    expected = [
      "llama3.1"
      false
      true
    ];
  };
  testAtLeastRefusesText = {
    expr = fails (check.arguments.atLeast "f" "n" 1 "1");
    expected = true;
  };
  testFlagsWords = {
    expr = flagsOf flagRows "2.10.0" {
      count = 2;
      rate = 0.5;
      on = false;
      bare = true;
      text = "x y";
      list = [
        "a"
        "b"
      ];
      late = 1;
    };
    expected = builtins.concatMap (word: [
      "--flag"
      word
    ]) [
      "bare"
      "count=2"
      "late=1"
      "list=a"
      "list=b"
      "on=false"
      "rate=0.5"
      "text=x y"
    ];
  };
  testFlagsRefuses = {
    expr = map (given: fails (flagsOf flagRows "2.9.0" given)) [
      { coumt = 1; }
      { count = -1; }
      { count = "1"; }
      { rate = "x"; }
      { on = "true"; }
      { bare = false; }
      { text = ""; }
      { text = [ "x" ]; }
      { list = [ "" ]; }
      { late = 1; }
      { mine = 1; }
      { shut = 1; }
    ];
    expected = builtins.genList (_: true) 12;
  };
  # Any value stands in an error, which Nix's toJSON cannot do.
  testDescribe = {
    expr = map check.arguments.describe [
      3
      "a"
      null
      true
      [ (x: x) ]
      { }
      { b = 1; a = x: x; }
      (x: x)
      /a
      { type = "derivation"; }
    ];
    expected = [ "3" "\"a\"" "null" "true" "a list" "{ }" "a set of a, b" "a function" "the path /a" "a derivation" ];
  };
  testWhole =
    let
      build = { a, b ? a }: a + b;
      of = check.arguments.whole "f" build;
      # Of one shape in every function; null where there is a default.
      shaped = check.arguments.whole "f" ({ model, name ? "n", limits ? { } }: model + name + limits);
      taken = args: (shaped args) == args;
      m = { type = "derivation"; };
    in
    {
      expr = [
        (of { a = 1; })
        (fails (of { }))
        (fails (of { b = 1; }))
        (fails (of 3))
        (check.arguments.call "f" build { a = 1; })
        (map taken [ { model = m; } { model = /a; } { model = "/nix/store/a"; name = null; limits = null; } ])
        (map (args: fails (shaped args)) [ { model = null; } { model = 3; } { model = "a"; } { model = m; name = 3; } { model = m; limits = [ ]; } ])
      ];
      expected = [ { a = 1; } true true true 2 [ true true true ] [ true true true true true ] ];
    };
  testOutput =
    let
      of = check.arguments.output "f" "engine" "mkEngine";
    in
    {
      expr = [ (of { kind = "rtx"; }).kind ] ++ map (v: fails (of v)) [ 3 null "a" { } { kind = 3; } ];
      expected = [ "rtx" true true true true true ];
    };
}
