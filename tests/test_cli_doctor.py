"""`ggufkit doctor`: with and without MLX, whatever the environment says."""

from __future__ import annotations

import json
import sys

from ggufkit.cli import main


def run(capsys, *arguments: str) -> str:
    main(["doctor", *arguments])
    return capsys.readouterr().out


def test_doctor_names_the_cpu_and_its_bodies(capsys):
    found = json.loads(run(capsys, "--json"))
    assert set(found["CPU"]["bodies"]) >= {"dot", "half", "lookup", "permute"}
    assert found["threads"]["used"] >= 1
    assert found["room"]["memory"] > 0
    text = run(capsys)
    assert found["CPU"]["name"] in text
    assert f"dot={found['CPU']['bodies']['dot']}" in text


def test_doctor_runs_without_mlx(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    assert json.loads(run(capsys, "--json"))["MLX"] == {"installed": "no"}


def test_doctor_shows_what_is_set(capsys, monkeypatch):
    monkeypatch.setenv("GGUFKIT_THREADS", "none")
    found = json.loads(run(capsys, "--json"))
    assert found["environment"]["GGUFKIT_THREADS"] == "none"
    assert "whole number" in found["threads"]["used"]
