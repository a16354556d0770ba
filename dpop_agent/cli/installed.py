"""How this program came here, so that it can be installed once more."""

from __future__ import annotations

import json
from urllib.parse import unquote, urlsplit

from dpop_agent import __version__, paths


def requirement() -> str:
    """What an installer is to be given for the same: a folder, a file or an address where it came
    from one (PEP 610), else its name and version.
    """
    from importlib import metadata  # takes longer than all else that `service` imports

    try:
        origin = json.loads(metadata.distribution(paths.APP).read_text("direct_url.json") or "{}")
        url = str(origin.get("url", ""))
        if (vcs := origin.get("vcs_info")) is not None:
            return f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        url = ""
    if url.startswith("file://"):
        return unquote(urlsplit(url).path)
    return url or f"{paths.APP}=={__version__}"
