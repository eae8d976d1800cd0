"""The site's first page is the README; Sphinx's roles in docstrings become plain names."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> None:
    readme = Path(config.config_file_path).with_name("README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))


def on_page_content(html: str, **_: Any) -> str:
    return re.sub(r":\w+:<code>[~.]*(?:\w+\.)*(\w+)</code>", r"<code>\1</code>", html)
