#!/usr/bin/env python3
"""tests/lint/lint.py [ROOT]: keeps the tree in the shape that the style page promises.

Reads every file that git knows or would add and prints PATH:LINE: RULE: what is wrong.  A rule is
a function (tree, path, text) -> (line, words); RULES lists them.  SELF_TESTS holds for each rule a
small bad file that it must flag, and GOOD a tree that no rule may flag; a rule that finds nothing
any more would otherwise look like a clean tree.  The last line counts rules and self-tests.
"""
import os
import re
import subprocess
import sys
import tempfile

LOWER = {"base": "", "proto": "base", "kernels": "base", "comm": "base proto kernels",
         "model": "base proto kernels", "kvshard": "base proto kernels comm model",
         "worker": "base proto kernels comm model kvshard", "coordinator": "base proto model"}
ALSO = {  # folder or file: single headers that it sees beside its own folder and those of LOWER
    "coordinator/": "comm/comm.h comm/reduce.h kernels/device.h "
                    "kvshard/policy.h kvshard/methods.h kvshard/stack.h "
                    "kvshard/account.h kvshard/profile.h",
    "coordinator/main.c": "worker/worker.h worker/lab.h worker/calibrate.h "
                          "kvshard/convert.h"}
METHODS_SEE = ("base/", "kvshard/policy.h", "kvshard/codec.h", "kvshard/profile.h",
               "kernels/kernels.h", "model/desc.h", "model/weights.h")
BACKENDS = ("kernels/ref/", "kernels/cpu/", "kernels/cuda/")
HOMES = [  # foreign headers and the only places that may include them; tests/ is free
    (r"mpi\.h", ["comm/mpi.c"]), (r"nccl", ["comm/nccl.c"]),
    (r"cuda|cublas|cooperative_groups|nvtx|mma\.h", ["kernels/cuda/", "comm/nccl.c"]),
    (r"yaml\.h", ["coordinator/config.c"]), (r"protobuf-c/|.*\.pb-c\.h", ["proto/"]),
    (r"dnnl|oneapi/dnnl|cblas", ["kernels/cpu/"]), (r"lapack", ["kernels/small.c"]),
    (r"jansson", ["base/", "model/"]),
    (r"pcre2|utf8proc", ["model/"]), (r"openssl/", ["base/sha256.c"]),
    (r"hwloc", ["coordinator/cluster.c"]),
    (r"CUnit/", ["tests/"])]
FILE_LINES_AIM, FILE_LINES, FUNCTION_LINES, HEADER_FUNCTIONS, COLUMNS = 600, 1000, 120, 20, 100

C_FILES = (".c", ".h", ".inc", ".cu", ".cuh", ".cpp", ".cc")
CODE = C_FILES + (".py", ".sh", ".sbatch", ".proto", ".cmake", "CMakeLists.txt")
TEXT = CODE + (".md", ".yaml", ".yml", ".json", ".clang-format")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"\n]+)[>"]', re.M)
BLANKED = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
                     r'|^[ \t]*#(?:/\*.*?\*/|\\\n|[^\n])*', re.S | re.M)
UNWANTED = re.compile("/" + r"work/|/tmp" + r"/b|/home/\w|\bTO" + r"DO\b|\bFIX" + r"ME\b")


def blank(text):
    """C text with comments, strings and preprocessor lines gone, and every line in its place."""
    return BLANKED.sub(lambda m: '""' if m[0][0] == '"' else "\n" * m[0].count("\n"), text)


def top_level(text):
    """Yields (first line, last line, head, has a body) of everything at file scope."""
    code = re.sub(r'\bSF_C_(BEGIN|END)\b|extern ""[ ]*{', "", blank(text))
    depth, start, head_end = 0, 0, 0
    for at in (m.start() for m in re.finditer(r"[{};]", code)):
        if code[at] == "{":
            if depth == 0:
                head_end = at
            depth += 1
        elif code[at] == "}":
            depth = max(depth - 1, 0)
            if depth == 0 and is_function(code[start:head_end]):
                yield (*span(code, start, at), code[start:head_end], True)
                start = at + 1
        elif depth == 0:
            yield (*span(code, start, at), code[start:at], False)
            start = at + 1


def span(code, start, end):
    start += len(code[start:]) - len(code[start:].lstrip())
    return code.count("\n", 0, start) + 1, code.count("\n", 0, end) + 1


def is_function(head):
    """Does this text, up to a body or a semicolon, declare a function (not a pointer to one)?"""
    head = re.sub(r"__attribute__\s*\(\(.*\)\)", "", head.split("{")[0], flags=re.S)
    return bool(re.match(r"(?!\s*typedef\b)[^(=]*?[\w*]\s*\b\w+\s*\((?!\s*\*)", head))


def layers(tree, path, text):
    folder = path.split("/")[0]
    if folder not in LOWER:
        return
    for found in INCLUDE.finditer(text):
        target = found[2]
        above = target.split("/")[0]
        if found[1] == "<" or (folder == "proto" and target.endswith(".pb-c.h")):
            continue
        seen = [above == folder, above in LOWER[folder].split()]
        seen += [target in ALSO.get(key, "").split() for key in (folder + "/", path)]
        if path.startswith("kvshard/methods/"):
            seen = [target.startswith(METHODS_SEE)]
        crossing = [b for b in BACKENDS if target.startswith(b) and
                    path.startswith(BACKENDS) and not path.startswith(b)]
        if above not in LOWER or "/" not in target:
            yield line_of(text, found), f'"{target}" is not written from the root'
        elif not any(seen) or crossing:
            yield line_of(text, found), f"{path} must not see {target}"


def homes(tree, path, text):
    for found in INCLUDE.finditer(text):
        for pattern, places in HOMES:
            if re.match(pattern, found[2]) and not path.startswith((*places, "tests/")):
                yield line_of(text, found), f"{found[2]} belongs to {' and '.join(places)}"


def file_lines(tree, path, text):
    if text.count("\n") > FILE_LINES:
        yield 1, f"{text.count(chr(10))} lines, at most {FILE_LINES}"


def excused(path, text):
    """A kernel may be long, or a file of its building blocks wide, where its opening says why."""
    opening = re.match(r"/\*.*?\*/", text, re.S)
    return path.startswith("kernels/") and opening and "ceiling:" in opening[0]


def function_lines(tree, path, text):
    if excused(path, text):
        return
    if blank(text).count("{") != blank(text).count("}"):
        yield 1, "braces do not balance: #if and #else should hold whole blocks"
    for first, last, head, body in top_level(text):
        if body and last - first + 1 > FUNCTION_LINES:
            yield first, f"a function of {last - first + 1} lines, at most {FUNCTION_LINES}"


def header_functions(tree, path, text):
    count = sum(is_function(head) for first, last, head, body in top_level(text))
    if path.endswith((".h", ".cuh")) and count > HEADER_FUNCTIONS and not excused(path, text):
        yield 1, f"declares {count} functions, at most {HEADER_FUNCTIONS}"


def columns(tree, path, text):
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > COLUMNS:
            yield number, f"{len(line)} columns, at most {COLUMNS}"


def white_space(tree, path, text):
    for number, line in enumerate(text.split("\n"), 1):
        if "\t" in line and path.endswith(C_FILES):
            yield number, "a tab"
        if line != line.rstrip():
            yield number, "blanks at the end of the line"
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        yield text.count("\n") + 1, "the file should end with one newline"


def opening_comment(tree, path, text):
    wanted = "/* " if path.startswith("tests/") else f"/* {path}: "
    if not text.startswith(wanted):
        yield 1, f"the first line should start with '{wanted}' and say what the file is for"


def shell_syntax(tree, path, text):
    if re.match(r"#!.*\b(ba)?sh\b", text) or path.endswith((".sh", ".sbatch")):
        tried = subprocess.run(["bash", "-n", os.path.join(tree, path)], stderr=subprocess.PIPE,
                               check=False)
        if tried.returncode != 0:
            yield 1, tried.stderr.decode(errors="replace").strip()


def house_words(tree, path, text):
    for number, line in enumerate(text.split("\n"), 1):
        for found in UNWANTED.finditer(line):
            yield number, f"'{found[0]}' has no place here"


RULES = [(layers, C_FILES), (homes, C_FILES), (file_lines, CODE), (function_lines, C_FILES),
         (header_functions, C_FILES), (columns, CODE), (white_space, CODE + (".yaml", ".yml")),
         (opening_comment, C_FILES), (shell_syntax, ("",)), (house_words, TEXT)]

GOOD = {
    "base/a.h": '/* base/a.h: x */\n#ifdef __cplusplus\n#define B extern "C" {\n#endif\nstruct t {'
                "\n    int (*call)(int);\n};\nint f(void);\n",
    "kernels/cpu/a.c": '/* kernels/cpu/a.c: ceiling: one loop */\n#include <dnnl.h>\n#include '
                       '"base/a.h"\nint f(void)\n{\n' + "    ;\n" * 130 + "}\n",
    "kernels/cpu/a.h": "/* kernels/cpu/a.h: ceiling: small ones */\n" + "int f(void);\n" * 21,
    "kvshard/methods/m.c": '/* kvshard/methods/m.c: x */\n#include "kvshard/policy.h"\n',
    "coordinator/main.c": '/* coordinator/main.c: x */\n#include "worker/worker.h"\n'}
SELF_TESTS = [  # (rule, path, text after the opening comment)
    ("layers", "base/a.c", '#include "comm/comm.h"\n'),
    ("layers", "coordinator/run.c", '#include "worker/worker.h"\n'),
    ("layers", "coordinator/plan.c", '#include "kvshard/store.h"\n'),
    ("layers", "kvshard/methods/m.c", '#include "kvshard/store.h"\n'),
    ("layers", "kernels/cpu/a.c", '#include "kernels/ref/b.h"\n'),
    ("layers", "model/a.c", '#include "share.h"\n'),
    ("homes", "worker/a.c", "#include <mpi.h>\n"),
    ("homes", "coordinator/plan.c", "# include <hwloc.h>\n"),
    ("file_lines", "base/a.c", "int a;\n" * 1000),
    ("function_lines", "base/a.c", "int f(int a[])\n{\n" + "    ;\n" * 118 + "}\n"),
    ("function_lines", "base/a.c", "struct t { int a; };\nstatic struct t *f(void (*g)(void))"
                                   "\n{\n" + '    c = "}";\n' * 118 + "}\n"),
    ("function_lines", "base/a.c", "#if A\nint f(int a) {\n#else\nint f(void) {\n#endif\n}\n"),
    ("header_functions", "base/a.h", 'extern "C" {\n' + "int f(void);\n" * 21 + "}\n"),
    ("header_functions", "base/a.h", "int f(int, void (*)(void));\nchar *g(void)\n    __attribute__"
                                     "((format(printf, 1, 2)));\nstatic inline int h(void) { }\n"
                                     * 7),
    ("columns", "base/a.c", "int " + "a" * 96 + ";\n"),
    ("white_space", "base/a.c", "\tint a;\n"), ("white_space", "base/a.py", "a = 1 \n"),
    ("white_space", "base/a.c", "int a;"), ("opening_comment", "base/b.c", None),
    ("shell_syntax", "deploy/a", "#!/bin/bash\nif true\n"),
    ("house_words", "docs/a.md", "see /" + "work/x\n"),
    ("house_words", "base/a.c", "/* TO" + "DO: more */\n")]


def line_of(text, found):
    return text.count("\n", 0, found.start()) + 1


def paths(tree):
    listed = subprocess.run(["git", "-C", tree, "ls-files", "-z", "-co", "--exclude-standard"],
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    if os.path.exists(os.path.join(tree, ".git")) and listed.returncode == 0:
        names = sorted(set(listed.stdout.decode().split("\0")) - {""})
    else:
        names = sorted(os.path.relpath(os.path.join(folder, name), tree)
                       for folder, _, files in os.walk(tree) for name in files)
    skip = ("build/", "models/", "out/", "shared/", "tests/data/", ".git/")
    return [name for name in names if not name.startswith(skip) and
            os.path.isfile(os.path.join(tree, name))]


def check(tree):
    """{rule: [PATH:LINE: RULE: words]} and remarks that are no failures."""
    flagged, remarks = {rule.__name__: [] for rule, _ in RULES}, []
    for path in paths(tree):
        try:
            with open(os.path.join(tree, path), encoding="utf-8") as file:
                text = file.read()
        except UnicodeDecodeError:
            continue
        if path.endswith(CODE) and text.count("\n") > FILE_LINES_AIM:
            remarks.append(f"{path}: {text.count(chr(10))} lines, the aim is {FILE_LINES_AIM}")
        for rule, endings in RULES:
            if path.endswith(endings):
                flagged[rule.__name__] += [f"{path}:{line}: {rule.__name__}: {words}"
                                           for line, words in rule(tree, path, text)]
    return flagged, remarks


def check_small(files):
    with tempfile.TemporaryDirectory() as tree:
        for path, text in files.items():
            os.makedirs(os.path.join(tree, os.path.dirname(path)), exist_ok=True)
            with open(os.path.join(tree, path), "w", encoding="utf-8") as file:
                file.write(text)
        return check(tree)[0]


def main(tree):
    passed, failures = 0, []
    for wanted, path, text in SELF_TESTS:
        opening = f"/* {path}: x */\n" if path.endswith(C_FILES) else ""
        flagged = check_small({path: "int a;\n" if text is None else opening + text})
        if [rule for rule, lines in flagged.items() if lines] == [wanted]:
            passed += 1
        else:
            failures.append([f"self-test of {wanted} on {path}: flagged {flagged}"])
    checks, remarks = check(tree)
    checks["a good tree"] = sum(check_small(GOOD).values(), [])
    passed += sum(not lines for lines in checks.values())
    failures += [lines for lines in checks.values() if lines]
    print("\n".join(["  note: " + remark for remark in remarks] + sum(failures, [])))
    print(f"lint: {passed} passed, {len(failures)} failed, 0 skipped")
    return 1 if failures else 0


if __name__ == "__main__":
    HERE = os.path.dirname(os.path.abspath(__file__))
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "..", "..")))
