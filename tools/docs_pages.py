"""What the documentation site shows of the repository outside docs/ (a hook of mkdocs.yml).

A page links to such a file as one does in the repository, by `../results/README.md`; on the site
these files lie beside the pages, so that the link loses its `../`.
"""

import pathlib
import re

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
SHOWN = ('CONTRIBUTING.md', 'assets/README.md', 'findings/README.md', 'results/**/*.*')


def on_files(files: Files, config) -> Files:
    """Adds the files of `SHOWN` to the site's."""
    for pattern in SHOWN:
        for file in sorted(ROOT.glob(pattern)):
            path = file.relative_to(ROOT).as_posix()
            files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Rewrites a page's links that leave docs/."""
    if page.file.src_dir == str(ROOT):
        return markdown
    up = '../' * (page.file.src_uri.count('/') + 1)
    return re.sub(rf'\]\({re.escape(up)}(?=\w)', f']({up.removeprefix("../")}', markdown)
