# shellcheck shell=bash disable=SC2154,SC1090
# ModelOpt imports half of the CUDA stack, which wants a home.
source "$environment"
eval "flags=($flags)"
export PYTHONPATH=$enginix/lib PYTHONDONTWRITEBYTECODE=1
python3 "$enginix/libexec/launch.py" convert "$model" -o "$out" "${flags[@]}"
