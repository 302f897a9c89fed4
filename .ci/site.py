"""mkdocs hooks: README and CONTRIBUTING as pages, the API reference, and links to files that the site does not have.

Pages are written for GitHub, where every relative link works. On the site, a link to another page stays a link; a link to a
file outside docs/ goes to the repository if mkdocs.yml has `repo_url`, and becomes its text otherwise.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import normpath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
MOVED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}  # in the repository, on the site
API = {  # heading -> what stands under it
    "Transform": ["kecae_aug.KeyExchangeAugment", "kecae_aug.EngineOptions"],
    "Data sets, loader, bank, gate": [
        "kecae_aug.KeyExchangeDataset",
        "kecae_aug.KeyExchangeLoader",
        "kecae_aug.LatentBank",
        "kecae_aug.Gate",
    ],
    "Model and weights": [
        "kecae_aug.KECAE",
        "kecae_aug.Latents",
        "kecae_aug.load_weights",
        "kecae_aug.save_weights",
        "kecae_aug.weights.hub",
    ],
    "Radiographs": [
        "kecae_aug.data.RadiographFolder",
        "kecae_aug.data.RadiographTable",
        "kecae_aug.data.Preprocessing",
        "kecae_aug.data.split_patients",
        "kecae_aug.data.check_disjoint",
        "kecae_aug.data.alignment",
    ],
    "Files": ["kecae_aug.generate.generate"],
    "Integrations": [
        "kecae_aug.integrations.albumentations",
        "kecae_aug.integrations.lightning",
        "kecae_aug.integrations.timm",
    ],
    "Phantoms": ["kecae_aug.phantom.PhantomKnees", "kecae_aug.phantom.render", "kecae_aug.phantom.jsw"],
}
_CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]*`)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#:]+)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that do not stand in docs/."""
    parts = [f"## {title}\n\n" + "\n\n".join(f"::: {name}" for name in names) for title, names in API.items()]
    files.append(File.generated(config, "api.md", content="# API reference\n\n" + "\n\n".join(parts) + "\n"))
    for source, page in MOVED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead every relative link to where its target is on the site."""
    folder = "." if page.file.src_uri in MOVED.values() else "docs"

    def lead(link: re.Match[str]) -> str:
        path = normpath(f"{folder}/{link['target']}")
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri}: {link[0]} leads to no file of the repository")
        target = MOVED.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if target is None:
            if not config.repo_url:
                return link["text"]
            target = f"{config.repo_url.rstrip('/')}/blob/main/{path}"
        return f"{link['image']}[{link['text']}]({target}{link['anchor'] or ''})"

    prose_and_code = _CODE.split(markdown)  # code at odd places
    return "".join(part if i % 2 else _LINK.sub(lead, part) for i, part in enumerate(prose_and_code))
