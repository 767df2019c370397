"""Long English prose out of Debian packages, as plain text.

Manuals come as HTML, of which the paragraphs are kept (no listings, tables, lists of contents);
dictionaries as dictzip files, which gzip reads, cut into parts.  Each text is one page or part, cut
at a paragraph after CHARS_MAX characters.  The order deals the sources out in turn, so that the
first few texts are of different kinds.
"""
import glob
import gzip
import html.parser
import itertools
import os
import re

CHARS_MIN, CHARS_MAX = 10500, 40000     # about 2,300 and 9,000 tokens
DOC = "/usr/share/doc"
# package, files (HTML pages or a dictionary), texts at most
SOURCES = [
    ("debian-handbook", DOC + "/debian-handbook/html/en-US/*.html", 9),
    ("dict-devil", "/usr/share/dictd/devil.dict.dz", 5),
    ("debian-reference-en", "/usr/share/debian-reference/ch*.en.html", 6),
    ("dict-jargon", "/usr/share/dictd/jargon.dict.dz", 5),
    ("debian-policy", DOC + "/debian-policy/policy.html/ch-*.html", 5),
    ("developers-reference", "/usr/share/developers-reference/*.html", 4)]
PACKAGES = [source[0] for source in SOURCES]


class Paragraphs(html.parser.HTMLParser):
    """Text of <p> and <dd> outside of what is no prose."""
    SKIP = {"pre", "table", "script", "style", "nav", "head", "footer"}
    BLOCKS = {"p", "dd", "li", "dt", "h1", "h2", "h3", "h4", "div"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.skipped, self.parts, self.kept = 0, [], []

    def flush(self):
        text = re.sub(r"\s+", " ", "".join(self.parts)).strip().replace("\u00b6", "")
        self.parts = []
        if len(text) >= 80 and text[-1] in ".!?:;)\"'\u201d":
            self.kept.append(text)

    def handle_starttag(self, tag, attrs):
        if tag in self.SKIP:
            self.skipped += 1
        if tag in self.BLOCKS or tag in self.SKIP:
            self.flush()

    def handle_endtag(self, tag):
        if tag in self.BLOCKS or tag in self.SKIP:
            self.flush()
        if tag in self.SKIP:
            self.skipped = max(self.skipped - 1, 0)

    def handle_data(self, data):
        if not self.skipped:
            self.parts.append(data)


def paragraphs_of_page(path):
    parser = Paragraphs()
    with open(path, encoding="utf-8", errors="replace") as page:
        parser.feed(page.read())
    parser.close()
    parser.flush()
    return parser.kept


def paragraphs_of_dictionary(path):
    """Lines are joined; what a database says of itself (00-database-...) is left out."""
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
        blocks = re.split(r"\n\s*\n", file.read())
    joined = [re.sub(r"\s+", " ", block).strip() for block in blocks]
    start = next((i for i, text in enumerate(joined) if i > 3 and len(text) > 40), 0)
    return [text for text in joined[start:] if len(text) > 20 and "00-database" not in text and
            "-----" not in text]


def cut(paragraphs):
    """Texts of up to CHARS_MAX characters, one after the other."""
    text = ""
    for paragraph in paragraphs:
        if len(text) + len(paragraph) > CHARS_MAX and text:
            yield text
            text = ""
        text += paragraph + "\n\n"
    yield text


def of_source(package, pattern, most):
    """[(name, package, text)]"""
    found = []
    for path in sorted(glob.glob(pattern)):
        if path.endswith(".dz"):
            parts = [text for text in cut(paragraphs_of_dictionary(path)) if
                     len(text) >= CHARS_MAX // 2]
            step = max(len(parts) // most, 1)           # spread over the alphabet
            found += [(f"{package}.{i * step}", package, text)
                      for i, text in enumerate(parts[::step])]
        else:
            stem = "-".join(os.path.basename(path).split(".")[:-1])
            text = next(cut(paragraphs_of_page(path)))
            if len(text) >= CHARS_MIN and stem != package:      # that would be all in one page
                found.append((f"{package}.{stem}", package, text))
    return found[:most]


def collect():
    """([(name, package, text)], [packages that are not there])"""
    by_source = [of_source(*source) for source in SOURCES]
    missing = [source[0] for source, found in zip(SOURCES, by_source) if not found]
    turns = itertools.zip_longest(*by_source)
    return [text for turn in turns for text in turn if text is not None], missing
