# mkRuntime :: { id, … } -> derivation
#
# One pinned software stack: the root file system of its NGC image as a store path, and the command
# that runs others inside it. In passthru: rootfs, driver, id, row, pinned.
{
  lib,
  pkgs,
  check,
  crane,
  ...
}@scope:
let
  function = "mkRuntime";
  runtimes = (lib.importJSON ../python/enginix/data/runtime/runtimes.json).runtimes;
  imageRuntimes = builtins.filter (id: runtimes.${id} ? images) (builtins.attrNames runtimes);
  inherit (pkgs.stdenvNoCC.hostPlatform) system;
  # A registry's port has a colon too.
  untagged = reference: builtins.head (builtins.match "(.*):[^:/]*" reference);
  command = import ./runtime/package.nix scope "command";

  build =
    {
      # A runtime of data/runtime/runtimes.json with an image.
      id,
      # Tag of one of its images; null takes the newest.
      image ? null,
      # Output of `enginix runtime pin`: a file, or its content. It wins over the table's hash.
      pin ? null,
      # A root file system in place of the image's, already in the store.
      rootfs ? null,
      # The GPU driver's root, with lib and bin; null finds /run/opengl-driver or the host's
      # libraries.
      driver ? null,
    }:
    let
      row = runtimes.${check.arguments.oneOf function "id" imageRuntimes id};
      tag = check.arguments.oneOf function "image" (builtins.attrNames row.images) (
        if pin != null then pinned.image else if image != null then image else row.defaultImage
      );
      source = row.images.${tag};
      pinned =
        if pin == null then
          null
        else
          check.runtime.pin function id system (
            if builtins.isAttrs pin then pin else lib.importJSON pin
          );
      # The image's own environment reaches the commands inside.
      pinFile =
        if pinned == null then "" else pkgs.writeText "${id}-pin.json" (builtins.toJSON pinned);
      public = source.hashes.${system} or { };
      # A public source without a hash of the tree, only with a digest, is not a pin.
      published = if public.hash or null == null then null else public;

      fetched =
        reference: hash:
        pkgs.stdenvNoCC.mkDerivation {
          name = "${id}-rootfs";
          buildCommandPath = ./builders/engine-image.sh;
          nativeBuildInputs = [ crane ];
          outputHashMode = "recursive";
          outputHash = hash;
          inherit reference;
          platform = row.platforms.${system};
          SSL_CERT_FILE = "${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt";
          impureEnvVars = lib.fetchers.proxyImpureEnvVars;
          preferLocalBuild = true;
          meta.description = "Root file system of ${reference}";
        };
      unpinned =
        first:
        pkgs.stdenvNoCC.mkDerivation {
          name = "${id}-rootfs";
          buildCommandPath = ./builders/engine-unpinned-runtime.sh;
          inherit first;
          inherit (source) reference;
          inherit id system tag;
          # Other images of this runtime with a published hash.
          others = builtins.filter (t: row.images.${t}.hashes.${system}.hash or null != null) (
            builtins.attrNames row.images
          );
          preferLocalBuild = true;
        };
      isPinned = rootfs != null || pinned != null || published != null;
      root =
        if rootfs != null then
          rootfs
        else if pinned != null then
          fetched "${untagged pinned.reference}@${pinned.digest}" pinned.hash
        else if published != null then
          fetched source.reference published.hash
        else
          unpinned [ ];
    in
    pkgs.stdenvNoCC.mkDerivation {
      name = "${id}-runtime";
      buildCommandPath = ./builders/engine-runtime.sh;
      inherit id command pinFile;
      rootfs = root;
      driver = if driver == null then "" else driver;
      inherit (pkgs) bash;
      preferLocalBuild = true;
      passthru = {
        inherit
          id
          row
          driver
          command
          pinFile
          ;
        rootfs = root;
        # Whether its bytes are known: by a pin, by the table, or because the caller brought them.
        pinned = isPinned;
        # The root file system for artefacts of this model. Where neither is pinned, the model's
        # error comes first.
        rootfsFor = model: if isPinned || model.locked or true then root else unpinned [ model ];
        image = tag;
      };
      meta = {
        platforms = import ./systems.nix;
        description = "Commands inside ${source.reference}";
        mainProgram = "${id}-run";
      };
    };
in
check.arguments.call function build
