# Limits of engines of kind tensorrt.
{ check, ... }:
let
  fails = import ../fails.nix;
  limits = check.limits.resolve "e";
in
{
  testLimitsAreAlwaysWrittenOut = {
    expr = limits { context = 4096; } { } { };
    expected = {
      maxBatchSize = 8;
      maxBeamWidth = 1;
      maxInputLen = 4095;
      maxNumTokens = 8192;
      maxSeqLen = 4096;
    };
  };
  testProfileLimitsYieldToGivenOnes = {
    expr = (limits { context = 4096; } { maxBatchSize = 256; } { maxBatchSize = 3; }).maxBatchSize;
    expected = 3;
  };
  testSequenceBeyondContext = {
    expr = fails (limits { context = 4096; } { } { maxSeqLen = 4097; });
    expected = true;
  };
  testSequenceUnknown = {
    expr = fails (limits { } { } { });
    expected = true;
  };
  testInputBeyondSequence = {
    expr = fails (limits { } { } { maxSeqLen = 8; maxInputLen = 9; });
    expected = true;
  };
  testTooFewTokensForTheBatch = {
    expr = fails (limits { context = 4096; } { } { maxBatchSize = 16; maxBeamWidth = 4; maxNumTokens = 63; });
    expected = true;
  };
  testLimitsOfNothingAndOfEverything = {
    expr = map (l: fails (limits { } { maxSeqLen = 4096; } l)) [
      { maxBatchSize = 0; }
      { maxNumTokens = 4611686018427387904; }
      { maxSeqLen = 2147483648; }
      { maxSeqLen = 2147483647; }
    ];
    expected = [ true true true false ];
  };
  testLimitsUnknownName = {
    expr = fails (limits { context = 4096; } { } { maxBatch = 1; });
    expected = true;
  };
  testChunks = {
    expr = map
      (paged: fails (check.limits.chunks "e" { maxInputLen = 9; maxNumTokens = 8; } { usePagedContextFmha = paged; }))
      [ true false ];
    expected = [ false true ];
  };
  testPromisedPrompts = {
    expr = map (a: fails (check.limits.promised "e" { maxInputLen = 9; maxNumTokens = a.tokens; } a.arguments)) [
      { tokens = 8; arguments = { enable_chunked_prefill = false; }; }
      { tokens = 9; arguments = { enable_chunked_prefill = false; }; }
      { tokens = 8; arguments = { enable_chunked_prefill = true; }; }
      { tokens = 8; arguments = { }; }
    ];
    expected = [ true false false false ];
  };
  # As NVIDIA's own Python has it: tests/golden/requests.jsonl.xz, compared by tests/python/engine_tensorrt/test_twin.py.
  testEffectiveLimits = {
    expr =
      let
        sizes = { maxBatchSize = 4; maxInputLen = 1000; maxSeqLen = 1024; maxNumTokens = 8192; maxBeamWidth = 1; };
        of = options: model: let e = check.limits.effective "e" sizes options model; in [ e.maxSeqLen e.maxNumTokens ];
      in
      [
        (of { } { })
        (of { removeInputPadding = false; } { })
        (of { speculativeDecodingMode = "medusa"; maxDraftLen = 2000; } { })
        (of { speculativeDecodingMode = "eagle"; maxDraftLen = 10; } { eagleLayers = 4; })
        (fails (of { speculativeDecodingMode = "eagle"; maxDraftLen = 257; } { }))
      ];
    expected = [ [ 1024 4096 ] [ 1024 4096 ] [ 3024 8004 ] [ 1038 4096 ] true ];
  };
}
