# Limits of an engine: always all five, written out, within the model's context.
#
# NVIDIA's defaults (2048 sequences, 8192 tokens) are what people run out of memory with.
{ lib, arguments, ... }:
let
  table = (lib.importJSON ../../python/enginix/data/tensorrt/build_options.json).limits;
  all = builtins.attrNames table;
  min = a: b: if a < b then a else b;
  max = a: b: if a > b then a else b;
in
{
  # resolve :: string -> { context ? null; … } -> set -> set
  #   -> { maxBatchSize; maxBeamWidth; maxInputLen; maxNumTokens; maxSeqLen; }
  resolve =
    function: model: profile: limits:
    let
      context = model.context or null;
      given = arguments.only "${function}: limits" all limits;
      chosen = builtins.mapAttrs (_: row: row.default) table // profile // given;
      maxSeqLen =
        if chosen.maxSeqLen != null then
          chosen.maxSeqLen
        else if context != null then
          context
        else
          throw (
            "${function}: limits.maxSeqLen is needed: the model's lock does not say its context. "
            + "It counts prompt and answer together."
          );
      full = chosen // {
        inherit maxSeqLen;
        # By default it leaves one token for the answer.
        maxInputLen = if chosen.maxInputLen != null then chosen.maxInputLen else maxSeqLen - 1;
      };
      # Numbers of Nix wrap at 64 bits: with a larger limit the plan's products turn negative, and
      # everything fits.
      within = name: arguments.between function "limits.${name}" 1 2147483647;
      checked = builtins.mapAttrs within full;
      inherit (checked) maxBatchSize maxBeamWidth maxInputLen;
      sequences = maxBatchSize * maxBeamWidth;
      # A step never takes more tokens than all sequences hold together.
      tokens =
        if given ? maxNumTokens then
          checked.maxNumTokens
        else
          min checked.maxNumTokens (maxBatchSize * checked.maxSeqLen);
    in
    if context != null && checked.maxSeqLen > context then
      throw (
        "${function}: limits.maxSeqLen = ${toString checked.maxSeqLen}, but the model's context is "
        + "${toString context} tokens; use at most ${toString context}."
        + lib.optionalString (context == model.pytorchContext or null) (
          " The PyTorch backend clips longer sequences of this model, to max_position_embeddings; "
          + "kind tensorrt does not."
        )
      )
    else if maxInputLen > checked.maxSeqLen then
      throw (
        "${function}: limits.maxInputLen = ${toString maxInputLen} is more than limits.maxSeqLen = "
        + "${toString checked.maxSeqLen}, which counts prompt and answer together."
      )
    else if tokens < sequences then
      throw (
        "${function}: limits.maxNumTokens = ${toString tokens}, but a step of "
        + "${toString maxBatchSize} sequences with beam width ${toString maxBeamWidth} needs "
        + "${toString sequences}; raise limits.maxNumTokens, or lower limits.maxBatchSize."
      )
    else
      checked // { maxNumTokens = tokens; };

  # What trtllm-build makes of them (python/enginix/kinds/tensorrt/build/effective_build.py): a step
  # holds at most what all sequences do, at least a block; drafts lengthen sequences, and a step has
  # room for each sequence's.
  # effective :: string -> limits -> options -> { eagleLayers ? null; … } -> limits
  effective =
    function: limits: options: model:
    let
      most = limits.maxBatchSize * limits.maxSeqLen;
      fused = options.contextFmha or true;
      least = if fused then options.tokensPerBlock or 32 else limits.maxInputLen;
      step =
        if options.removeInputPadding or true then
          max (min limits.maxNumTokens most) least
        else
          most;
      mode = options.speculativeDecodingMode or null;
      eagle = mode == "eagle";
      draft = options.maxDraftLen or 0;
      layers = model.eagleLayers or null;
    in
    if eagle && (limits.maxBatchSize > 512 || draft > 256) then
      throw (
        "${function}: EAGLE takes at most 512 sequences and 256 draft tokens; here are "
        + "limits.maxBatchSize = ${toString limits.maxBatchSize} and maxDraftLen = "
        + "${toString draft}."
      )
    else if mode == null then
      limits // { maxNumTokens = step; }
    else
      limits
      // {
        maxSeqLen = limits.maxSeqLen + draft + (if eagle && layers != null then layers else 0);
        maxNumTokens = max step (limits.maxBatchSize * (draft + 1));
      };

  # Prompts longer than a step need paged context attention, which takes them in chunks.
  # chunks :: string -> set -> { usePagedContextFmha; … } -> set
  chunks =
    function: limits: options:
    if limits.maxInputLen > limits.maxNumTokens && !(options.usePagedContextFmha or true) then
      throw (
        "${function}: limits.maxInputLen = ${toString limits.maxInputLen} is more than "
        + "limits.maxNumTokens = ${toString limits.maxNumTokens}, and without paged context "
        + "attention a prompt is not taken in chunks; raise limits.maxNumTokens, lower "
        + "limits.maxInputLen, or set plugins.usePagedContextFmha = true."
      )
    else
      limits;

  # The same for the PyTorch backend, where enable_chunked_prefill is written for longer prompts
  # (kind llmapi).
  # promised :: string -> set -> { enable_chunked_prefill ? null; … } -> set
  promised =
    function: limits: arguments:
    if
      limits.maxInputLen > limits.maxNumTokens
      && (arguments.enable_chunked_prefill or null) == false
    then
      throw (
        "${function}: limits.maxInputLen = ${toString limits.maxInputLen} is more than "
        + "limits.maxNumTokens = ${toString limits.maxNumTokens}, and "
        + "llmArgs.enable_chunked_prefill is false: TensorRT-LLM refuses such a prompt. Leave it "
        + "out, or set limits.maxInputLen = ${toString limits.maxNumTokens}."
      )
    else
      limits;
}
