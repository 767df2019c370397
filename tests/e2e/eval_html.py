"""The page of `sheaf eval --html`, made by a real eval.

Shown: one file that parses as HTML with every tag closed, its plots as XML; nothing in it points
elsewhere or runs; every run of the JSON is named with its figures, needles have their table; names
of files that look like HTML stay text.  Without gnuplot, or where the page cannot be written, one
line before the start.
"""
# cores: 1
import html.parser
import json
import os
import re
import sys
import xml.etree.ElementTree

import job

TEXT = ("A pipeline of stages is as fast as its slowest stage. If one of them takes twice as long "
        "as the others, these wait half of the time, however many there are. So the work is cut "
        "where the cuts are level, and not where they look nice; and what cannot be cut is done "
        "twice, if doing it twice costs less than to wait for it. ")
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(html.parser.HTMLParser):
    """Tags that are open, texts of cells, and what points elsewhere."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.wrong, self.tags, self.words, self.links = [], [], set(), [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        self.wrong += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        self.words.append(data.strip())


def window(recent):
    return job.config(deterministic=False, extra="kv_cache: {methods: [{name: window, "
                      "num_sink_tokens: 4, recent_tokens: %d}]}" % recent)


def check_page(tally, text, found):
    page = Page(text)
    tally.check("every tag is closed", (page.open, page.wrong), ([], []))
    tally.check("no script, nothing fetched", page.tags & {"script", "link", "img", "iframe"},
                set())
    tally.true("links stay inside", all(link.startswith("#") for link in page.links),
               str(page.links[:5]))
    plots = re.findall(r"<svg.*?</svg>", text, re.S)
    tally.check("plots", len(plots), 3)
    for plot in plots:
        root = xml.etree.ElementTree.fromstring(plot)
        titles = [e.text for e in root.iter("{http://www.w3.org/2000/svg}title")]
        tally.true("a plot: titles", len(titles) >= 2 and "window" in titles[1:], str(titles))
    ids = re.findall(r"""\sid=["']([^"']*)["']""", text)
    tally.check("ids are unique", len(ids), len(set(ids)))
    for run in [found["exact"], *found["runs"]]:
        what = run["stack"]
        tally.true(f"{what} is there", what in page.words, "no such cell")
        for figure in (f"{run['perplexity']:.3f}", f"{run['kv_fraction']:.4f}"):
            tally.true(f"{what}: {figure}", figure in page.words, "no such cell")
        tally.true(f"{what}: its configuration", any(run["config_file"] in word
                                                     for word in page.words))
        tally.true(f"{what}: needles", any(word.startswith(f"{what}: ") and "found" in word
                                           for word in page.words))
    tally.check("needles", text.count('class="heat"'), 2 * len([0, *found["runs"]]))


def pages(tally, folder):
    name = folder.file("<b>&'x'.txt", TEXT * 8)
    configs = [folder.file("short.yaml", window(8)), folder.file("<i>.yaml", window(24))]
    written, measured = folder.file("page.html"), folder.file("eval.json")
    done = job.sheaf(1, ["eval", *configs, "--text", name, "--len", "64", "--needle", "--filler",
                         name, "--needle-lengths", "120", "--needle-depths", "20,60",
                         "--needle-trials", "1", "--html", written, "--json", measured], 300)
    if not tally.check("exit code", done.code, 0):
        print(done.stderr[-2000:])
        return
    with open(written, encoding="utf-8") as file:
        text = file.read()
    with open(measured, encoding="utf-8") as file:
        check_page(tally, text, json.load(file))
    tally.check("names are no tags", ("<b>" in text, "<i>" in text), (False, False))
    tally.true("names are text", "&lt;b&gt;&amp;&#39;x&#39;.txt" in text and
               "&lt;i&gt;.yaml" in text)


def refusals(tally, folder):
    good, name = folder.file("good.yaml", window(8)), folder.file("text.txt", TEXT)
    os.makedirs(folder.file("bin"))
    os.symlink("/usr/bin/timeout", folder.file("bin/timeout"))
    without = {"PATH": folder.file("bin")}
    for what, page, env, words in [
            ("without gnuplot", folder.file("p.html"), without, ["--html", "gnuplot-nox"]),
            ("no folder", folder.file("no/p.html"), {}, ["--html", "no/p.html"]),
            ("a folder", folder.path + "/", {}, ["--html"])]:
        done = job.sheaf(1, ["eval", good, "--text", name, "--html", page], 60, extra_env=env)
        tally.check(f"{what}: exit code", done.code, 2)
        lines = done.error_lines()
        tally.true(f"{what}: one line with {words}", len(lines) == 1 and
                   all(word in lines[0] for word in words), done.stderr)
        tally.true(f"{what}: before the start", "sequences" not in done.stderr, done.stderr)


def main():
    tally = job.Tally("eval_html")
    job.need_model(tally)
    folder = job.Folder()
    refusals(tally, folder)
    pages(tally, folder)
    folder.remove()
    tally.end()


if __name__ == "__main__":
    sys.exit(main())
