"""Requests of nothing, and of little: none ends tritonserver, each is answered, the executor is closed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from enginix.errors import MachineError
from enginix.serve.launch import link_named_paths, link_repository, unbatch_reference
from enginix.serve.supervisor import explain_exit
from enginix.triton import config
from faults.small_bodies import Asked, empty_pairs, random_requests, send_all

# What tritonserver 2.51 printed, shortened; the addresses are of that run.
CRASHED = """\
Signal (11) received.
 0# 0x000055E56038152D in /nix/store/x-tritonserver/bin/tritonserver
 1# 0x00007FE23DE5A050 in /lib/x86_64-linux-gnu/libc.so.6
 2# 0x00007FE238F1D143 in /nix/store/x-tritonserver/backends/python/libtriton_python.so
 3# 0x00007FE238F2BCFC in /nix/store/x-tritonserver/backends/python/libtriton_python.so
 4# TRITONBACKEND_ModelInstanceExecute in /nix/store/x-tritonserver/backends/python/libtriton_python.so
 5# 0x00007FE23E7A70B4 in /nix/store/x-tritonserver/lib/libtritonserver-717102f0.so
 9# 0x00007FE23DCD44A3 in /lib/x86_64-linux-gnu/libstdc++.so.6

I1129 11:55:20.231763 1478 pb_stub.cc:2145]  Non-graceful termination detected.""".splitlines()


@pytest.mark.slow
def test_small_bodies_end_no_server(serve: Any, served_repository: Path) -> None:
    """The two optional inputs that ended it, every pair of empty inputs, and 10,000 random bodies."""
    with serve(served_repository) as running:
        endpoints = running.server.plan.endpoints
        asked = Asked(endpoints.http, endpoints.grpc)
        send_all(asked, iter([("http", "tensorrt_llm", {"seed": [], "min_tokens": []})]))
        send_all(asked, empty_pairs())
        send_all(asked, itertools.islice(random_requests(1), 10_000))
        assert not asked.unanswered and running.server.process.poll() is None
        assert sum(asked.answers.values()) > 12_000
        assert running.client.generate("ensemble", {"text_input": "Once", "max_tokens": 2})["text_output"]
        # None is left in the server that its end would wait for.
        assert running.server.stop() == 0


@pytest.mark.slow
def test_only_the_ensemble_is_open(serve: Any, served_repository: Path) -> None:
    body = {"input_ids": [1, 2], "input_lengths": 2, "request_output_len": 2}
    with serve(served_repository) as running:
        for more in (
            {},
            {"enginix_key": ""},
            {"enginix_key": "x" * 32},
            {"enginix_key": True},
            {"stop": True},
        ):
            with pytest.raises(MachineError, match="tensorrt_llm is for this server's own use"):
                running.client.generate("tensorrt_llm", {**body, **more})
        answer = running.client.generate("tensorrt_llm", {**body, "enginix_key": running.server.executor_key})
        assert answer["completion_tokens"] > 0


def test_requests_without_rows_pass_no_batching(served_repository: Path, tmp_path: Path) -> None:
    """Triton takes a request of no rows where it batches itself, and its Python backend crashes on it."""
    models = link_repository(served_repository, tmp_path / "models")
    unbatch_reference(models)
    for name in ("ensemble", "tensorrt_llm"):
        written = config.read_pbtxt(served_repository / name / config.FILE)
        found = config.read_pbtxt(models / name / config.FILE)
        assert found.max_batch_size == 0 and written.max_batch_size > 0
        assert found.parameters["max_batch_size"].string_value == str(written.max_batch_size)
        for tensor, was in zip((*found.input, *found.output), (*written.input, *written.output), strict=True):
            assert list(tensor.dims) == [-1, *was.dims]
            assert not (hasattr(tensor, "reshape") and tensor.HasField("reshape"))


def test_models_read_ascii_names(tmp_path: Path) -> None:
    """Triton's stub starts Python in the C locale, where other names are not found."""
    model, tokenizer = tmp_path / "models" / "ensemble", tmp_path / "tökenizer"
    model.mkdir(parents=True)
    tokenizer.mkdir()
    named = config.schema.ModelConfig(name="ensemble", backend="python")
    named.parameters["tokenizer_dir"].string_value = str(tokenizer)
    named.parameters["text"].string_value = "ö"
    (model / config.FILE).write_text(config.render_pbtxt(named), "utf-8")
    link_named_paths(tmp_path / "models", tmp_path / "links")
    found = config.read_pbtxt(model / config.FILE).parameters
    link = Path(found["tokenizer_dir"].string_value)
    assert link.name.isascii() and link.samefile(tokenizer) and found["text"].string_value == "ö"


def test_other_models_keep_their_batching(tmp_path: Path) -> None:
    model = tmp_path / "ensemble"
    model.mkdir()
    text = 'name: "ensemble"\nplatform: "ensemble"\nmax_batch_size: 4\n'
    (model / config.FILE).write_text(text)
    unbatch_reference(tmp_path)
    assert (model / config.FILE).read_text() == text


def test_a_crash_is_named_by_its_place_and_not_by_the_start() -> None:
    error = explain_exit(["Error: Failed to initialize NVML", "W1129 1 metrics.cc: no GPU", *CRASHED], -11)
    assert "signal 11: it crashed in libtriton_python.so (TRITONBACKEND_ModelInstanceExecute)" in error.what
    assert "NVML" not in str(error) and "libtriton_python.so" in str(error.fix)
    killed = explain_exit(["Error: Failed to initialize NVML", "error: an older line"], -9)
    assert "signal 9: killed from outside, or by the kernel for want of memory" in killed.what
    assert (
        "exit status 1: error: a real one"
        in explain_exit(["Error: Failed to initialize NVML", "error: a real one"], 1).what
    )
