"""Rules and dashboards ask for series that the services really have."""

import json
import re
from collections.abc import Iterator

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from services.api.metrics import GatewayMetrics
from services.scheduler.own_series import QueueWatch, SchedulerMetrics
from shared.events.local_metrics import LocalMetrics, PublisherMetrics
from shared.events.publisher import HttpPublisher
from shared.registry.base import QueueView
from shared.runtime.clock import SystemClock
from tests.deploy.rendered import ROOT, of_kind
from tests.fakes.task_registry import FakeTaskRegistry

RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "butterfly.json"
OF_PROMETHEUS = {"up"}
OF_EVERY_PROCESS = {"process_resident_memory_bytes"}
NAME = re.compile(r"\b(?:butterfly_\w+|\w+_total|\w+_seconds(?:_bucket|_sum|_count)?|\w+_bytes|up|job:[\w:]+)\b(?!\s*=)")
