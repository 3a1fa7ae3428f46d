# shellcheck shell=bash disable=SC2154
if [ -z "$revision" ]; then
  what="no commit is recorded for this model, so it cannot be fetched"
elif [ -n "$hash" ]; then
  what="no commit is recorded for the hash of this model, so it cannot be fetched"
else
  what="no lock is recorded for this model, so its files cannot be fetched and checked"
fi
{
  echo "error: $repo: $what"
  if [ -n "$gated" ]; then
    echo "  its licence must be accepted first, on https://huggingface.co/$repo, and HF_TOKEN set"
  fi
  echo "  fix: nix run .#pin -- $entry    (in a flake of your own: nix run github:enginix/enginix#pin -- $entry)"
  [ -z "$note" ] || printf '%s\n' "$note"
  echo "  To see the whole pipeline on any machine:"
  echo "       nix build .#tiny-qwen3-engine"
  echo "       nix run .#tiny-qwen3-triton-server"
} >&2
exit 1
