# Ranks of an engine, and the ways to write a target.
{ check, ... }:
let
  fails = import ../fails.nix;
  one = {
    tensorParallel = 1;
    pipelineParallel = 1;
    expertParallel = 1;
  };
in
{
  testRanksOfNothing = {
    expr = map (p: fails (check.engine.parallel "e" { kvHeads = 4; } (one // p) null)) [
      { tensorParallel = 0; }
      { pipelineParallel = 0; }
      { tensorParallel = "2"; }
      { tensorParallel = 2; }
    ];
    expected = [ true true true false ];
  };
  testParallelAccepts = {
    expr = check.engine.parallel "e" { heads = 8; kvHeads = 2; } (one // { tensorParallel = 4; }) 4;
    expected = 4;
  };
  testParallelRefuses = {
    expr = map fails [
      (check.engine.parallel "e" { } (one // { tensorParallel = 4; pipelineParallel = 2; }) 4)
      (check.engine.parallel "e" { experts = 8; } (one // { expertParallel = 3; }) null)
      (check.engine.parallel "e" { heads = 8; } (one // { tensorParallel = 2; expertParallel = 2; }) null)
      (check.engine.parallel "e" { heads = 12; kvHeads = 3; } (one // { tensorParallel = 2; }) null)
    ];
    expected = [ true true true true ];
  };
  testPipeline = {
    expr = map fails [
      (check.engine.pipeline "e" "Phi3ForCausalLM" 2)
      (check.engine.pipeline "e" "PhiMoEForCausalLM" 4)
      (check.engine.pipeline "e" "Phi3ForCausalLM" 1)
      (check.engine.pipeline "e" "LlamaForCausalLM" 2)
      (check.engine.pipeline "e" null 2)
    ];
    expected = [ true true false false false ];
  };
  testTargetForms = {
    expr = map (check.engine.target "e") [ "h200" { gpu = "b200"; count = 2; } ];
    expected = [
      { gpu = "h200"; count = null; driver = null; }
      { gpu = "b200"; count = 2; driver = null; }
    ];
  };
  testTargetRefuses = {
    expr = map (t: fails (builtins.deepSeq (check.engine.target "e" t) true)) [ 3 { count = 2; } { gpu = "b200"; cuont = 2; } { gpu = "b200"; count = 0; } ];
    expected = [ true true true true ];
  };
}
