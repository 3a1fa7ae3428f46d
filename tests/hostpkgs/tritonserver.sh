# shellcheck shell=bash disable=SC2154
# The wheel keeps one stub for each Python version apart; Triton wants the right one beside the backend.
mkdir -p "$out/backends/python"
ln -s "$wheel/bin" "$out/bin"
ln -s "$wheel/caches" "$out/caches"
ln -s "$wheel"/backends/python/* "$out/backends/python/"
ln -s "$wheel/python_backend_stubs/$pythonVersion/triton_python_backend_stub" "$out/backends/python/"
