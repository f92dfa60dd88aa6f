"""Run once before the other containers of docker-compose.yml: makes the secrets of this cluster, brings the demo model.

What is there already stays, so it may run again at each start. Workers get a file of their own: they hold no secret
but the join token.
"""

import os
import secrets
import shutil
from pathlib import Path

VOLUMES = Path("/volumes")
MODELS = Path("/opt/butterfly/models")
SETTINGS = "settings.toml"


def main() -> None:
    control, worker = VOLUMES / "control" / SETTINGS, VOLUMES / "worker" / SETTINGS
    if not (control.exists() and worker.exists()):
        service_token, join_token = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        write(worker, f'[security]\njoin_token = "{join_token}"\n')
        write(control, f'[security]\nservice_token = "{service_token}"\njoin_token = "{join_token}"\n')
        print("secrets made")
    for model in MODELS.iterdir():
        target = VOLUMES / "models" / model.name
        if not target.exists():
            part = target.with_name(f"{target.name}.part")
            shutil.copyfile(model, part)
            part.replace(target)
            print(f"{model.name} copied")


def write(path: Path, text: str) -> None:
    """Whole or not at all, for its owner's eyes."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)
    part.replace(path)


if __name__ == "__main__":
    main()
