"""What Prometheus is answered by a server and its bridge, and that dashboard and alerts ask for what there is."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from both import Both, run_both
from bridge_setup import CHAT, MODEL, ask, ask_about
from fakes import KEY, FakeLoader
from observed import samples, scrape
from pictures import data_uri
from spyglass_common.metrics_page import serve_metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "spyglass.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
LABELS = {"model", "finished_reason", "code", "le", "route", "device", "dtype", "quantization"}
"""All that metrics may be told apart by."""
NEEDS_PROMTOOL = pytest.mark.skipif(
    shutil.which("promtool") is None and "CI" not in os.environ, reason="Debian's package prometheus has promtool"
)


def promtool(*arguments: str, given: str = "") -> str:
    """All that promtool has to say, when it finds no fault."""
    checked = subprocess.run(["promtool", *arguments], input=given, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    return checked.stdout + checked.stderr


@pytest.fixture
async def watched(tiny_checkpoint: Path, tmp_path: Path) -> AsyncIterator[Both]:
    settings = {"server_metrics": "127.0.0.1:0", "metrics_alias": "vllm"}
    async with run_both(
        tiny_checkpoint, tmp_path, FakeLoader(), server=settings, bridge={"metrics": "127.0.0.1:0"}
    ) as both:
        yield both


async def test_what_is_counted_is_what_is_billed(watched: Both) -> None:
    picture = ask_about(data_uri(Image.new("RGB", (30, 20), "red")))
    bodies = [
        ask(max_tokens=5),
        ask(max_tokens=7, stream=True),
        ask(max_tokens=3, messages=picture),
        ask(max_tokens=3, messages=picture),
        ask(model="other"),
    ]
    statuses = []
    for body in bodies:
        async with watched.http.post(CHAT, json=body) as response:
            statuses.append(response.status)
            await response.read()
    assert statuses == [200, 200, 200, 200, 404]
    async with watched.http.get("/v1/usage") as response:
        usage = await response.json()
    found = samples(watched.server_page())
    of_model = f'{{model="{MODEL}"}}'
    assert found[f"spyglass_prompt_tokens_total{of_model}"] == usage["prompt_tokens"]
    assert found[f"spyglass_generation_tokens_total{of_model}"] == usage["completion_tokens"] == 18
    assert found[f'spyglass_request_success_total{{finished_reason="length",model="{MODEL}"}}'] == 4
    assert found['spyglass_admission_rejections_total{code="NOT_FOUND",model=""}'] == 1
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_decode_time"):
        assert found[f"spyglass_{name}_seconds_count{of_model}"] == 4
    assert found[f"spyglass_inter_token_latency_seconds_count{of_model}"] == 18 - 4
    assert found[f"spyglass_image_encode_time_seconds_count{of_model}"] == 1
    assert found[f"spyglass_image_cache_queries_total{of_model}"] == 2
    assert found[f"spyglass_image_cache_hits_total{of_model}"] == 1
    assert found[f"spyglass_prefix_cache_queries_total{of_model}"] == usage["prompt_tokens"]
    assert found[f"spyglass_prefix_cache_hits_total{of_model}"] == usage["cached_tokens"] > 0
    computed = usage["prompt_tokens"] - usage["cached_tokens"] + usage["completion_tokens"] - 4
    assert found[f"spyglass_iteration_tokens_sum{of_model}"] == computed  # the last token of an answer is not computed
    assert found[f"spyglass_num_requests_running{of_model}"] == found[f"spyglass_num_requests_waiting{of_model}"] == 0
    assert found[f"spyglass_kv_cache_usage_perc{of_model}"] == 0

    ours = samples(watched.bridge_page())
    assert ours[f'spyglass_bridge_requests_total{{code="200",route="{CHAT}"}}'] == 4
    assert ours[f'spyglass_bridge_requests_total{{code="404",route="{CHAT}"}}'] == 1
    assert ours["spyglass_bridge_server_ready"] == 1
    assert ours["spyglass_bridge_requests_running"] == ours["spyglass_bridge_held_bytes"] == 0


async def test_an_engine_that_dies_is_counted(watched: Both) -> None:
    engine = watched.server.server.engine
    async with watched.http.post(CHAT, json=ask(max_tokens=500, stream=True)) as response:
        await response.content.readline()
        watched.server.kill_engine()
        assert b"[DONE]" not in await response.read()
    await engine.wait_ready()
    found = samples(watched.server_page())
    assert found[f'spyglass_engine_restarts_total{{model="{MODEL}"}}'] == 1
    assert found[f'spyglass_request_failures_total{{code="UNAVAILABLE",model="{MODEL}"}}'] == 1
    route = f'route="{CHAT}"'
    assert samples(watched.bridge_page())[f'spyglass_bridge_requests_total{{code="503",{route}}}'] == 1
    async with watched.http.get("/v1/status") as response:
        status = await response.json()
    assert status["engine_restarts"] == 1
    assert [(each["code"], each["reason"]) for each in status["latest_failures"]] == [
        ("UNAVAILABLE", "engine_restarted")
    ]


async def test_labels_are_bounded_and_hold_nothing_of_a_caller(watched: Both) -> None:
    for path in ("/v1/models/secret-name", "/secret-path", "/v1/chat/completions"):
        async with watched.http.get(path, headers={"x-request-id": "secret-id"}) as response:
            await response.read()
    async with watched.http.post(CHAT, json=ask(model="secret-model", user="secret-user")) as response:
        assert response.status == 404
    for page in (watched.server_page(), watched.bridge_page()):
        assert "secret" not in page
        assert KEY not in page
        ours = "\n".join(line for line in page.splitlines() if line.startswith("spyglass_"))
        assert set(re.findall(r'[{,](\w+)="', ours)) <= LABELS


async def test_aliases_have_the_values_of_what_they_are_called_for(watched: Both) -> None:
    async with watched.http.post(CHAT, json=ask(max_tokens=5)) as response:
        assert response.status == 200
    found = samples(watched.server_page())
    aliases = {name: value for name, value in found.items() if name.startswith("vllm:")}
    assert {re.split(r"[{]", name)[0] for name in aliases} >= {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total",
        "vllm:generation_tokens_total",
        "vllm:request_success_total",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:iteration_tokens_total_count",
    }
    assert aliases[f'vllm:generation_tokens_total{{model_name="{MODEL}"}}'] == 5
    for name, value in aliases.items():
        own = name.replace("vllm:iteration_tokens_total", "vllm:iteration_tokens").replace("vllm:", "spyglass_")
        labels = sorted(re.findall(r'(\w+="[^"]*")', own.replace("model_name=", "model=")))
        assert found[own.split("{")[0] + "{" + ",".join(labels) + "}"] == value, name


@NEEDS_PROMTOOL
async def test_the_metrics_are_as_prometheus_wants_them(watched: Both) -> None:
    async with watched.http.post(CHAT, json=ask(max_tokens=5)) as response:
        assert response.status == 200
    for page in (watched.server_page(), watched.bridge_page()):
        ours = "".join(line for line in page.splitlines(keepends=True) if "vllm:" not in line and "python_" not in line)
        assert "spyglass_" in ours
        assert promtool("check", "metrics", given=ours) == ""


@NEEDS_PROMTOOL
def test_the_alert_rules_are_as_prometheus_wants_them() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(ALERTS))
    assert "SUCCESS" in promtool("check", "config", "--syntax-only", str(ALERTS.with_name("prometheus.yaml")))


async def test_dashboard_and_alerts_ask_for_metrics_that_there_are(watched: Both) -> None:
    async with watched.http.post(CHAT, json=ask(max_tokens=5)) as response:
        assert response.status == 200
    there = {
        re.split(r"[{ ]", line)[0]
        for page in (watched.server_page(), watched.bridge_page())
        for line in page.splitlines()
    }
    appear_later = {"spyglass_request_failures_total", "spyglass_admission_rejections_total"}
    for file in (DASHBOARD, ALERTS):
        asked = set(re.findall(r"\bspyglass_\w+", file.read_text()))
        assert len(asked) > 5
        assert asked - there - appear_later == set(), file.name


def test_metrics_that_others_can_read_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with serve_metrics("0.0.0.0:0", CollectorRegistry()) as address:
        assert address is not None
        assert scrape(f"127.0.0.1:{address.rpartition(':')[2]}") == ""
    assert "can be read from other machines" in caplog.text
    with serve_metrics(None, CollectorRegistry()) as address:
        assert address is None


async def test_the_docs_have_every_metric(watched: Both) -> None:
    documented = set(re.findall(r"`(spyglass_\w+)`", (DEPLOY.parent / "docs" / "observability.md").read_text()))
    pages = watched.server_page() + watched.bridge_page()
    families = re.findall(r"^# TYPE (spyglass_\w+) \w+$", pages, re.MULTILINE)
    assert documented == set(families)


def test_the_dashboard_is_the_same_wherever_it_is_imported() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert board["uid"] == "spyglass"
    assert board["schemaVersion"] == 41
    assert ("datasource", "datasource") in [(each["name"], each["type"]) for each in board["templating"]["list"]]
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels)
    assert all(target["expr"] for panel in panels for target in panel["targets"])
