# Tell whether an expression, evaluated whole, is refused.
e: !(builtins.tryEval (builtins.deepSeq e e)).success
