"""``porter serve`` as a command: its arguments, a whole life of its process, handing over to vllm."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from step_model import MODELS_DIR

from porter.cli import main

COMMAND = [sys.executable, "-c", "import sys; from porter.cli import main; sys.exit(main())"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "moon"], "--engine moon: there are porter, vllm-omni"),
        (["--tensor-parallel-size", "2"], "--tensor-parallel-size: this engine has one process"),
        (["--moon"], "--moon: no such option"),
        (["--port", "70000"], "--port"),
        (["--max-num-seqs", "0"], "--max-num-seqs"),
        (["--dtype", "int8"], "--dtype int8"),
        (["--diffusers-load-kwargs", "{}"], "--diffusers-load-kwargs needs --diffusion-load-format diffusers"),
        (["--allowed-local-media-path", "nowhere"], "--allowed-local-media-path nowhere: no such folder"),
        ([], "./nowhere"),
    ],
)
def test_a_bad_argument_is_named(capfd, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORTER_LOG_LEVEL", "ERROR")
    assert main(["serve", "./nowhere", *arguments]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("porter: error: ") and words in line


@pytest.fixture
def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))}


def test_a_server_starts_answers_and_stops(toy_checkpoint, environment):
    model = toy_checkpoint("ToyPipeline")
    arguments = [str(model), "--models-dir", str(MODELS_DIR), "--device", "cpu", "--served-model-name", "toy", "--port"]
    environment["PORTER_API_KEY"] = "secret"
    port = free_port()
    process = subprocess.Popen(
        [*COMMAND, "serve", *arguments, str(port)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        line = process.stdout.readline().decode()
        assert "ToyPipeline (default, step by step)" in line and str(port) in line
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/images/generations",
            json.dumps({"prompt": "x", "model": "toy"}).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer secret"},
        )
        for _ in range(300):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    assert json.load(answer)["data"]
                    break
            except urllib.error.URLError:
                time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGTERM) and "Traceback" not in errors.decode()
        assert "secret" not in errors.decode()
    finally:
        process.kill()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@pytest.fixture
def fake_vllm(tmp_path):
    """An environment whose interpreter prints what it was called with."""
    for package in ("vllm", "vllm_omni", "porter-0.1.0.dist-info"):
        (tmp_path / "lib/python3.11/site-packages" / package).mkdir(parents=True)
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "$PORTER_OMNI_MODELS_DIR"\n')
    program.chmod(0o755)
    return tmp_path


def test_the_command_is_handed_to_vllm(fake_vllm, environment, tmp_path):
    environment["PORTER_OMNI_ENV"] = str(fake_vllm)
    given = ["--tensor-parallel-size", "2", "--port", "9000", "--flow-shift", "3", "--models-dir", str(MODELS_DIR)]
    done = subprocess.run(
        [*COMMAND, "serve", "MODEL", "--engine", "vllm-omni", *given], env=environment, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[:5] == ["-m", "vllm.entrypoints.cli.main", "serve", "MODEL", "--omni"]
    assert lines[-1] == str(MODELS_DIR) and sorted(lines[5:-1]) == sorted([*given[:4], "--flow-shift", "3.0"])


def test_without_vllm_it_says_how_to_get_it(monkeypatch, capfd, tmp_path, fake_vllm):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORTER_OMNI_ENV", str(tmp_path / "nothing"))
    assert main(["serve", "MODEL", "--engine", "vllm-omni"]) == 2
    assert "no vllm with vllm-omni in" in (words := capfd.readouterr().err) and "make omni-env" in words
    monkeypatch.setenv("PORTER_OMNI_ENV", str(fake_vllm))
    assert main(["serve", "MODEL", "--engine", "vllm-omni", "--max-queue", "3"]) == 2
    assert "--max-queue is an option of porter's own server" in capfd.readouterr().err
    (fake_vllm / "lib/python3.11/site-packages/porter-0.1.0.dist-info").rmdir()
    assert main(["serve", "MODEL", "--engine", "vllm-omni"]) == 2
    assert "porter, whose plugin" in capfd.readouterr().err


def test_importing_the_command_line_imports_no_server():
    code = "import sys, porter.cli; assert not {'torch', 'fastapi', 'uvicorn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
