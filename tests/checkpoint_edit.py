"""Edits the config in a checkpoint, for runs unlike those that were trained."""

import json


def edit(workdir, **settings):
    """Other settings, PART_LEAF or KEY, in the newest checkpoint's config; its seal goes."""
    steps = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    folder = max(steps, key=lambda path: int(path.name))
    (folder / "seal.json").unlink()
    path = folder / "config" / "metadata"
    config = json.loads(path.read_text())
    for key, value in settings.items():
        part, _, leaf = key.partition("_")
        if leaf:
            config[part][leaf] = value
        else:
            config[part] = value
    path.write_text(json.dumps(config))
