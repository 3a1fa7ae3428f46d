# Locks: repositories, revisions, paths, files.
{ lib, check }:
let
  fails = import ../fails.nix;
  sha = lib.concatStringsSep "" (builtins.genList (_: "a") 64);
  commit = lib.concatStringsSep "" (builtins.genList (_: "0") 40);
  lock = {
    version = 1;
    repo = "owner/name";
    revision = commit;
    files."config.json" = {
      sha256 = sha;
      size = 2;
    };
  };
  parse = check.lock.parse "test.lock.json";
in
{
  testRepoAccepts = {
    expr = check.lock.repo "f" "Qwen/Qwen2.5-7B-Instruct";
    expected = "Qwen/Qwen2.5-7B-Instruct";
  };
  testRepoRefusesPath = {
    expr = fails (check.lock.repo "f" "../x/y");
    expected = true;
  };
  testRevisionAcceptsCommit = {
    expr = check.lock.revision "f" "r" commit;
    expected = commit;
  };
  testRevisionRefusesBranch = {
    expr = fails (check.lock.revision "f" "r" "main");
    expected = true;
  };
  testPathAccepts = {
    expr = check.lock.path "l" "a/b.json";
    expected = "a/b.json";
  };
  testPathRefusesParent = {
    expr = fails (check.lock.path "l" "../etc/x");
    expected = true;
  };
  testPathRefusesAbsolute = {
    expr = fails (check.lock.path "l" "/etc/x");
    expected = true;
  };
  testPathRefusesTheManifests = {
    expr = fails (check.lock.path "l" "enginix.json");
    expected = true;
  };
  testPathRefusesBackslash = {
    expr = fails (check.lock.path "l" "a\\b");
    expected = true;
  };
  testPathRefusesWhatEndsALine = {
    expr = map (p: fails (check.lock.path "l" p)) [
      "a\n/etc/passwd"
      "a\tb"
      "a/.git/config"
      "ä/b c.json"
    ];
    expected = [
      true
      true
      true
      false
    ];
  };
  testParseKeepsFiles = {
    expr = (parse lock).files."config.json".path;
    expected = "config.json";
  };
  testParseRefusesVersion = {
    expr = fails (parse (lock // { version = 2; }));
    expected = true;
  };
  testParseRefusesShortHash = {
    expr = fails (parse (lock // { files."a".sha256 = "ab"; }));
    expected = true;
  };
  # A model's lock names no type, as it never did.
  testParseKnowsModelsAndDatasets = {
    expr = map (l: (parse (lock // l)).type) [
      { }
      { type = "model"; }
      { type = "dataset"; }
    ];
    expected = [
      "model"
      "model"
      "dataset"
    ];
  };
  testParseRefusesOtherTypes = {
    expr = map (type: fails (parse (lock // { inherit type; }))) [
      "space"
      null
      [ "dataset" ]
    ];
    expected = [
      true
      true
      true
    ];
  };
  # What the command refuses, and Nix can tell.
  testParseRefusesPickles = {
    expr = map (p: fails (parse (lock // { files.${p} = lock.files."config.json"; }))) [
      "pytorch_model.bin"
      "a/b.PT"
      "x.pth.json"
    ];
    expected = [
      true
      true
      false
    ];
  };
  testParseRefusesPathsThatClash = {
    expr =
      map
        (
          paths:
          fails (parse (lock // { files = builtins.listToAttrs (map (name: { inherit name; value = lock.files."config.json"; }) paths); }))
        )
        [
          [ "Config.json" "config.json" ]
          [ "a" "a/b.json" ]
          [ "A/b" "a/b/c.json" ]
          [ "A/b.json" "a/c.json" ]
          [ "ab" "a/b.json" "a/c.json" ]
        ];
    expected = [
      true
      true
      true
      false
      false
    ];
  };
  testParseRefusesUnknownKeys = {
    expr = map (l: fails (parse (lock // l))) [
      { comment = ""; }
      { files."config.json" = lock.files."config.json" // { mode = 1; }; }
      { select.tag = "v1"; }
      { select.revision = "v1"; }
    ];
    expected = [
      true
      true
      true
      false
    ];
  };
  testParseRefusesWhatIsNoLicense = {
    expr = map (license: fails (parse (lock // { inherit license; }))) [
      [ "mit" ]
      { }
      false
      "mit"
      null
    ];
    expected = [
      true
      true
      true
      false
      false
    ];
  };
  testParseRefusesOtherGates = {
    expr = map (gated: fails (parse (lock // { inherit gated; }))) [
      true
      null
      false
      "manual"
    ];
    expected = [
      true
      true
      false
      false
    ];
  };
  testParseRefusesNoFiles = {
    expr = fails (parse (lock // { files = { }; }));
    expected = true;
  };
}
