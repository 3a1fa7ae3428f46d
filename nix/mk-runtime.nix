# mkRuntime :: { id | like, … } -> derivation
#
# One pinned software stack: the root file system of its NGC image as a store path, and the command
# that runs others inside it. For an image that the table does not have, say which runtime it is
# like: { like; image; versions; }. Its id ends with -unverified, and evaluation, manifests and
# commands say that enginix did not verify it. In passthru: rootfs, driver, id, row, pinned.
{
  lib,
  pkgs,
  check,
  crane,
  warn,
  ...
}@scope:
let
  function = "mkRuntime";
  runtimes = (lib.importJSON ../python/enginix/data/runtime/runtimes.json).runtimes;
  imageRuntimes = builtins.filter (id: runtimes.${id} ? images) (builtins.attrNames runtimes);
  inherit (pkgs.stdenvNoCC.hostPlatform) system;
  # A registry's port has a colon too.
  untagged =
    reference:
    let
      plain = builtins.head (lib.splitString "@" reference);
      tagged = builtins.match "(.*):[^:/]*" plain;
    in
    if tagged == null then plain else builtins.head tagged;
  command = import ./runtime/package.nix scope "command";

  build =
    {
      # A runtime of data/runtime/runtimes.json with an image.
      id ? null,
      # In place of id: the runtime that another image is like. Paths and kinds are taken from it.
      like ? null,
      # With id: tag of one of its images; null takes the newest. With like: the image's reference.
      image ? null,
      # With like: what the image has, as far as known: { tensorrtLlm = "1.4.0rc2"; driver = …; }.
      versions ? { },
      # Output of `enginix runtime pin`: a file, or its content. It wins over the table's hash.
      pin ? null,
      # A root file system in place of the image's, already in the store.
      rootfs ? null,
      # The GPU driver's root, with lib and bin; null finds /run/opengl-driver or the host's
      # libraries.
      driver ? null,
    }:
    let
      described =
        if id != null && like != null then
          throw "${function}: id and like exclude each other; pass one of them."
        else if id == null && like == null then
          throw (
            "${function}: pass id, or like, image and versions for an image that the table does "
            + "not have. Known: ${lib.concatStringsSep ", " imageRuntimes}."
          )
        else if like == null && versions != { } then
          throw "${function}: versions are those of the table for id; pass like in place of id."
        else
          like != null;
      row =
        if !described then
          runtimes.${name}
        else
          let
            unlisted = check.runtime.unlisted function { inherit like image versions; };
          in
          warn (
            "${function}: ${unlisted.id} is not verified by enginix: like ${like}, image "
            + "${toString image}"
          ) unlisted;
      name =
        if described then row.id else check.arguments.oneOf function "id" imageRuntimes id;
      tag = check.arguments.oneOf function "image" (builtins.attrNames row.images) (
        if pin != null then
          pinned.image
        else if !described && image != null then
          image
        else
          row.defaultImage
      );
      # What the command names it by.
      word =
        if described then
          "${pkgs.writeText "${name}.json" (builtins.toJSON row.description)}"
        else
          name;
      source = row.images.${tag};
      pinned =
        if pin == null then
          null
        else
          check.runtime.pin function name system (
            if builtins.isAttrs pin then
              pin
            else if builtins.isPath pin || builtins.isString pin && lib.hasPrefix "/" pin then
              lib.importJSON pin
            else
              throw (
                "${function}: pin is ${check.arguments.describe pin}, not the file that "
                + "`enginix runtime pin` wrote, nor its content."
              )
          );
      # The image's own environment reaches the commands inside.
      pinFile =
        if pinned == null then "" else pkgs.writeText "${name}-pin.json" (builtins.toJSON pinned);
      public = source.hashes.${system} or { };
      # A public source without a hash of the tree, only with a digest, is not a pin.
      published = if public.hash or null == null then null else public;

      fetched =
        reference: hash:
        pkgs.stdenvNoCC.mkDerivation {
          name = "${name}-rootfs";
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
          name = "${name}-rootfs";
          buildCommandPath = ./builders/engine-unpinned-runtime.sh;
          inherit first;
          inherit (source) reference;
          inherit system tag;
          id = name;
          description = lib.optionalString described (builtins.toJSON row.description);
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
      name = "${name}-runtime";
      buildCommandPath = ./builders/engine-runtime.sh;
      inherit command pinFile word;
      id = name;
      rootfs = root;
      driver = if driver == null then "" else driver;
      inherit (pkgs) bash;
      launcher = ./builders/launcher.sh;
      preferLocalBuild = true;
      passthru = {
        id = name;
        inherit
          row
          word
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
        description =
          "Commands inside ${source.reference}"
          + lib.optionalString described "; runtime ${name} is not verified by enginix";
        mainProgram = "${name}-run";
      };
    };
in
check.arguments.call function build
