"""What a user reads about the API, whose blocks the tests run: the README and the pages that go on from it."""

from tests.support.serving import ROOT

PAGES = ("README.md", "docs/front-ends.md", "docs/authentication.md", "docs/operating.md")
GUIDE = "\n".join((ROOT / page).read_text() for page in PAGES)
