# Pins of runtime images, and runtimes that the table does not have: what
# python/enginix/runtime/unlisted.py reads, too.
{
  lib,
  arguments,
  names,
  ...
}:
let
  isDigest = s: builtins.isString s && builtins.match "sha256:[0-9a-f]{64}" s != null;
  inherit (lib.importJSON ../../python/enginix/data/runtime/runtimes.json) runtimes;
  versionNames = [
    "cuda"
    "driver"
    "modelopt"
    "nccl"
    "python"
    "tensorrt"
    "tensorrtLlm"
    "torch"
    "transformers"
    "tritonServer"
  ];
  imaged = builtins.filter (id: runtimes.${id} ? images) (builtins.attrNames runtimes);
  withTriton = builtins.filter (id: runtimes.${id}.paths.triton != null) imaged;
  notVerified = "not verified by enginix";

  number = "(0|[1-9][0-9]*)";
  releasePattern =
    "(${number}[.]${number}[.]${number})((a|b|rc)${number})?([.](post|dev)[0-9]+)*";
  release = builtins.match releasePattern;
  # A word of a tag that begins with a release, as v1.3.0rc20 and trtllm1.3.0rc20.
  tagWord = builtins.match "[A-Za-z]*(${releasePattern})([A-Za-z].*)?";
  tagVersions =
    tag:
    map builtins.head (
      builtins.filter (m: m != null) (
        map tagWord (builtins.filter builtins.isString (builtins.split "[-_]" tag))
      )
    );
  image = builtins.match (
    "[a-z0-9]+([.-][a-z0-9]+)*(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+"
    + "(:([A-Za-z0-9_][A-Za-z0-9_.-]*))?(@sha256:[0-9a-f]{64})?"
  );

  # Up to 1.3.0rc20 TensorRT-LLM has trtllm-build.
  hasEnginePath =
    version:
    let
      at = builtins.elemAt (release version);
      order = builtins.compareVersions (at 0) "1.3.0";
      candidate = at 5;
    in
    order < 0
    || order == 0
      && (
        candidate == "a"
        || candidate == "b"
        || candidate == "rc" && builtins.fromJSON (at 6) <= 20
      );
in
rec {
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
      # The command knows no such id; it takes the description.
      word = if builtins.match ".*-unverified" id == null then id else "description.json";
      command = "enginix runtime pin ${word} --system ${system} -o runtime.json";
      again = "write it again with `${command}`.";
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

  # A runtime that the table does not have: like one of its rows, with another image and other
  # versions. What is not said is unknown: nothing but paths, variables and kinds is the row's.
  # unlisted :: string -> { like; image; versions; } -> row
  unlisted =
    function: description:
    let
      inherit (description) like versions;
      base = runtimes.${like};
      parts = if builtins.isString description.image then image description.image else null;
      tag = builtins.elemAt parts 5;
      named = if tag == null then [ ] else tagVersions tag;
      strange = builtins.filter (n: !builtins.elem n versionNames) (builtins.attrNames versions);
      isText =
        v: builtins.isString v && builtins.match "[0-9A-Za-z.,<>=!~+ -]{1,60}" v != null;
      isNumber = v: v == null || builtins.match "[0-9]+([.][0-9]+){1,2}" v != null;
      wrong = builtins.filter (n: !isText versions.${n}) (builtins.attrNames versions);
      version = versions.tensorrtLlm or null;
      triton = versions.tritonServer or null;
      withoutEngines = builtins.filter (id: !runtimes.${id}.enginePath) imaged;
      newest = builtins.elemAt withoutEngines (builtins.length withoutEngines - 1);
      name = if tag == null then "image" else tag;
    in
    if !builtins.elem like imaged then
      throw (
        "${function}: like = ${arguments.describe like}, but it must be a runtime with an image: "
        + (
          if builtins.isString like then
            names.unknown "runtime" like imaged
          else
            "${lib.concatStringsSep ", " imaged}."
        )
      )
    else if parts == null || tag == null && builtins.elemAt parts 6 == null then
      throw (
        "${function}: image = ${arguments.describe description.image}, but with like it must be a "
        + "registry, a name and a tag or digest: \"nvcr.io/nvidia/tensorrt-llm/release:1.4.0rc2\"."
      )
    else if !builtins.isAttrs versions then
      throw "${function}: versions must be a set such as { tensorrtLlm = \"1.4.0rc2\"; }."
    else if strange != [ ] then
      throw "${function}: versions: ${names.unknown "name" (builtins.head strange) versionNames}"
    else if wrong != [ ] then
      throw (
        "${function}: versions.${builtins.head wrong} = "
        + "${arguments.describe versions.${builtins.head wrong}}, but it must be a version as a "
        + "text, such as \"1.4.0rc2\"."
      )
    else if version == null || release version == null then
      throw (
        "${function}: versions.tensorrtLlm = ${arguments.describe version}, but it must be "
        + "TensorRT-LLM's version in the image, such as \"1.4.0rc2\": engines are held to it."
      )
    else if !isNumber (versions.driver or null) || !isNumber triton then
      throw "${function}: versions.driver and versions.tritonServer are such as \"590.48.01\"."
    else if named != [ ] && !builtins.elem version named then
      throw (
        "${function}: the image's tag says ${builtins.head named}, versions.tensorrtLlm "
        + "${version}; make them the same version. Where the tag's is another software's, name "
        + "the image by its digest in place of the tag: NAME@sha256:…"
      )
    else if base.enginePath && !hasEnginePath version then
      throw (
        "${function}: like = \"${like}\" has the engine path, which TensorRT-LLM ${version} has no "
        + "more (removed after 1.3.0rc20). Use like = \"${newest}\"."
      )
    else if triton != null && base.paths.triton == null then
      throw (
        "${function}: versions.tritonServer = \"${triton}\", but images like ${like} have no "
        + "Triton. Leave it out, or use like = ${lib.concatStringsSep " or " withTriton}."
      )
    else
      builtins.listToAttrs (
        map (n: lib.nameValuePair n (versions.${n} or null)) (
          builtins.filter (n: n != "tritonServer") versionNames
        )
      )
      // {
        id = "trtllm-${version}-unverified";
        inherit (base)
          enginePath
          kinds
          platforms
          paths
          environment
          ;
        tritonImages = [ ];
        tritonServer = lib.optional (triton != null) triton;
        defaultImage = name;
        images.${name} = {
          reference = description.image;
          tritonServer = triton;
          sizeGB = null;
          hashes = { };
        };
        source =
          "as described by its user, ${notVerified}; paths and variables are those of ${like}";
        verified = false;
        inherit description;
      };

  # The id of a name or of mkRuntime's output.
  # idOf :: string -> string|derivation -> string
  idOf =
    function: runtime:
    if builtins.isString runtime then
      runtime
    else if builtins.isAttrs runtime && runtime ? row.kinds && runtime ? id then
      runtime.id
    else if builtins.isAttrs runtime && runtime ? like then
      throw (
        "${function}: runtime is the description of a runtime; pass mkRuntime's output: "
        + "runtime = mkRuntime { like = …; image = …; versions = { … }; }."
      )
    else
      throw (
        "${function}: runtime is ${arguments.describe runtime}, neither a runtime's name, such as "
        + "\"trtllm-1.2.1\", nor mkRuntime's output."
      );

  # mkRuntime's output, also of a name.
  # packageOf :: string -> (set -> derivation) -> string|derivation -> derivation
  packageOf =
    function: mkRuntime: runtime:
    let
      id = idOf function runtime;
    in
    if builtins.isString runtime then mkRuntime { inherit id; } else builtins.seq id runtime;

  # The Triton of mkRuntime's output, where Triton is to serve an engine: its row and version.
  # triton :: string -> derivation -> { row; version; }
  triton =
    function: runtime:
    let
      inherit (runtime) row;
    in
    if row.paths.triton == null then
      throw (
        "${function}: the image of runtime ${runtime.id} has no Triton. Serve the engine with "
        + "mkServe { engine = …; }, which has OpenAI's interface, or build it for a runtime of "
        + "Triton's images: ${lib.concatStringsSep ", " withTriton}."
      )
    else
      {
        inherit row;
        version = row.images.${runtime.image}.tritonServer;
      };

  # A name, mkRuntime's output, or null where neither is asked for: the rows with it.
  # rows :: string|derivation -> { ID = row; … }
  rows =
    runtime:
    if builtins.isString runtime || !(runtime ? row) then
      runtimes
    else
      runtimes // { ${runtime.id} = runtime.row; };

  # What a request and a command line name a runtime by: its id, or its description.
  # spec :: string|derivation -> string|set
  spec =
    runtime: if builtins.isString runtime then runtime else runtime.row.description or runtime.id;
}
