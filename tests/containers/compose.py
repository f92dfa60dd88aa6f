"""docker-compose.yml as a running cluster, for tests."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROJECT = "butterfly-test"
CONTROL_SERVICES = ("metrics", "partitioner", "coordinator", "scheduler", "api")
COMMAND_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Engine:
    environ: Mapping[str, str]
    """In which `docker` reaches it."""

    def docker(self, *arguments: str) -> str:
        """Standard output. Raises `AssertionError` with what the command printed when it fails."""
        return self.run(["docker", *arguments])

    def inspect(self, name: str) -> Any:  # JSON as Docker gives it
        return json.loads(self.docker("inspect", name))[0]

    def python(self, image: str, code: str) -> str:
        """What a program in a fresh container of `image` prints; hardened as in docker-compose.yml."""
        hardened = ("--read-only", "--cap-drop", "ALL", "--network", "none", "--tmpfs", "/tmp")
        return self.docker("run", "--rm", *hardened, "--entrypoint", "python", image, "-c", code)

    def run(self, command: list[str], environ: Mapping[str, str] | None = None) -> str:
        done = subprocess.run(
            command,
            env={**self.environ, **(environ or {})},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_LIMIT_S,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-3000:]}{done.stdout[-1000:]}"
        return done.stdout


@dataclass(frozen=True, slots=True)
class ComposeCluster:
    """Also a `Gateway`."""

    engine: Engine
    port: int
    liar_data: Path
    """The lying worker's /data."""
    model: str = "smollm2-135m"

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def compose(self, *arguments: str) -> str:
        files = ("--file", "docker-compose.yml", "--file", "tests/containers/liar.yml")
        command = [str(Path(sys.executable).with_name("docker-compose")), "--project-name", PROJECT, *files, *arguments]
        return self.engine.run(command, {"BUTTERFLY_PORT": str(self.port), "LIAR_DATA": str(self.liar_data)})

    def up(self, *arguments: str) -> None:
        """Without the liar, until all are healthy."""
        self.compose("up", "--detach", "--wait", *arguments, *CONTROL_SERVICES, "redis", "worker")

    def containers(self, service: str) -> list[str]:
        """Ids; empty when it does not run."""
        return self.compose("ps", "--quiet", service).split()

    def volumes(self) -> set[str]:
        """Of its containers, those without a name too."""
        label = ("--filter", f"label=com.docker.compose.project={PROJECT}", "--quiet")
        mounts = [
            mount
            for found in self.engine.docker("ps", "--all", *label).split()
            for mount in self.engine.inspect(found)["Mounts"]
        ]
        return {str(mount["Name"]) for mount in mounts if mount["Type"] == "volume"}

    def leftovers(self) -> dict[str, list[str]]:
        """What is there of this project, by kind."""
        label = ("--filter", f"label=com.docker.compose.project={PROJECT}", "--quiet")
        return {
            kind: self.engine.docker(*listing, *label).split()
            for kind, listing in {
                "containers": ("ps", "--all"),
                "volumes": ("volume", "ls"),
                "networks": ("network", "ls"),
            }.items()
        }
