"""What the documentation site shows of the repository outside docs/ (a hook of mkdocs.yml).

A page links to such a file as one does in the repository, by `../results/README.md`; on the site
these files lie beside the pages, so that the link loses its `../`. A notebook becomes a page.
"""

import pathlib
import re
import sys

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import notebooks

sys.path.pop(0)

ROOT = pathlib.Path(__file__).parents[1]
SHOWN = ('CONTRIBUTING.md', 'assets/README.md', 'findings/README.md', 'results/**/*.*')


def on_files(files: Files, config) -> Files:
    """Adds the files of `SHOWN`, and a page for each notebook, to the site's."""
    for pattern in SHOWN:
        for file in sorted(ROOT.glob(pattern)):
            path = file.relative_to(ROOT).as_posix()
            files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    for file in sorted(notebooks.EXAMPLES.glob('*.ipynb')):
        text, pictures = notebooks.page(notebooks.read(file), file.stem)
        files.append(File.generated(config, f'examples/{file.stem}.md', content=text))
        for name, png in pictures.items():
            files.append(File.generated(config, f'examples/{file.stem}/{name}', content=png))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Rewrites a page's links that leave docs/."""
    if page.file.src_dir == str(ROOT) or page.file.generated_by:
        return markdown
    up = '../' * (page.file.src_uri.count('/') + 1)
    inside = re.sub(rf'\]\({re.escape(up)}(?=\w)', f']({up.removeprefix("../")}', markdown)
    return re.sub(r'(\]\([^)]*examples/\w+)\.ipynb\)', r'\1.md)', inside)
