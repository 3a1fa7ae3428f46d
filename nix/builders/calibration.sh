# shellcheck shell=bash disable=SC1090,SC2154
source "$environment"
eval "flags=($flags)"
# Only the tokenizer's files, where the model is a list of files: the weights are not needed.
if [ -z "$tokenizer" ]; then
  tokenizer=$NIX_BUILD_TOP/tokenizer
  mkdir "$tokenizer"
  while IFS= read -r path && IFS= read -r file; do
    ln -s "$file" "$tokenizer/$path"
  done <"$linksPath"
fi
enginix calibrate "$tokenizer" -o "$out" "${flags[@]}"
