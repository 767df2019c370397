"""What the end-to-end scripts share: starting real jobs under mpirun, and counting results.

A job is `sheaf run` (or any subcommand) with a configuration written on the spot; its folder is
temporary and goes away with the test, unless the test fails.
"""
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SHEAF = os.path.join(os.environ.get("SHEAF_BUILD", os.path.join(ROOT, "build/dev")), "sheaf")
MODEL = os.path.join(ROOT, "models/smollm2-135m-instruct.gguf")
LEVEL = os.environ.get("SHEAF_TEST_LEVEL", "normal")


class Tally:
    """Counts checks; prints both values of a failing one; ends with the countable line."""

    def __init__(self, name):
        self.name, self.passed, self.failed, self.skipped = name, 0, 0, 0

    def check(self, what, actual, expected):
        if actual == expected:
            self.passed += 1
            return True
        self.failed += 1
        print(f"  FAILED {what}: is {actual!r}, expected {expected!r}")
        return False

    def true(self, what, condition, note="it is not so"):
        if condition:
            self.passed += 1
            return True
        self.failed += 1
        print(f"  FAILED {what}: {note}")
        return False

    def skip(self, what, reason):
        self.skipped += 1
        print(f"  skipped: {what}: {reason}")

    def end(self):
        print(f"{self.name}: {self.passed} passed, {self.failed} failed, {self.skipped} skipped")
        sys.exit(1 if self.failed else 0)


def need_model(tally):
    """Ends a test that starts real jobs where there is nothing to start or no model."""
    if not os.path.exists(MODEL):
        tally.skip("all", "the real model is not there (deploy/fetch-model.sh)")
        tally.end()
    if not os.access(SHEAF, os.X_OK):
        tally.true("there is a build", False, f"no {SHEAF}; SHEAF_BUILD names the build folder")
        tally.end()


@functools.cache
def ranks_are_threads():
    """A build without MPI: one process, whatever the layout."""
    done = subprocess.run([SHEAF, "--version"], capture_output=True, text=True, check=False)
    return "no MPI" in done.stdout


def has_mpi():
    """Is there a launcher, and was sheaf built for it?"""
    return shutil.which("mpirun") is not None and not ranks_are_threads()


def has_ranks():
    return has_mpi() or ranks_are_threads()


def environment():
    env = dict(os.environ, OMPI_MCA_mpi_yield_when_idle="1")
    if os.geteuid() == 0:
        env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return env


def command(ranks, arguments, limit_s=600):
    line = ["timeout", "-k", "5", str(limit_s)]
    if ranks > 1 and not ranks_are_threads():
        line += ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
    return line + [SHEAF] + arguments


class Folder:
    """A temporary folder for one test's files."""

    def __init__(self):
        self.path = tempfile.mkdtemp(prefix="sheaf-test-")

    def file(self, name, text=None):
        """The path of a file here, which gets this content: text, bytes, or none (not made)."""
        path = os.path.join(self.path, name)
        if text is not None:
            with open(path, "wb") as out:
                out.write(text if isinstance(text, bytes) else text.encode("utf-8"))
        return path

    def remove(self):
        shutil.rmtree(self.path, ignore_errors=True)


def config(dtype="f32", tensor=1, pipeline=1, data=1, deterministic=True, seqs=64, extra=""):
    return f"""schema_version: 1
model: {{path: {MODEL}, dtype: {dtype}}}
parallel:
  tensor_parallel_size: {tensor}
  pipeline_parallel_size: {pipeline}
  data_parallel_size: {data}
scheduler: {{max_num_seqs: {seqs}, max_model_len: 2048}}
run: {{deterministic: {"true" if deterministic else "false"}}}
{extra}"""


def stack(recent, merging=True):
    """Methods that edit in prompt and answer, each on its layers: one drops, one folds and, unless
    it is left out, one merges by what it has watched of attention, so that it shares masses too."""
    merger = ("{name: ems, budget_tokens: %d, recent_tokens: 10, num_sink_tokens: 2, "
              "recompress_interval: 5, similarity_threshold: 0.3, layers: 0-9}, " % (recent - 4))
    return ("methods: [%s{name: razor_attention, retrieval_heads: [[3, 1], [12, 0], [20, 2]], "
            "layers: %s, min_window_tokens: %d, window_divisor: 50, min_dropped_tokens: 2, "
            "fold_tokens: 3}, {name: window, num_sink_tokens: 4, recent_tokens: %d, layers: 20-29}]"
            % (merger if merging else "", "10-19" if merging else "0-19", recent, recent))


def records(bodies, chat=False):
    url = "/v1/chat/completions" if chat else "/v1/completions"
    lines = [json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body})
             for name, body in bodies]
    return "\n".join(lines) + "\n"


class Done:
    def __init__(self, code, stdout, stderr, seconds, output):
        self.code, self.stdout, self.stderr, self.seconds = code, stdout, stderr, seconds
        self.answers = {}
        if output and os.path.exists(output):
            with open(output, encoding="utf-8") as lines:
                for line in lines:
                    answer = json.loads(line)
                    if answer["custom_id"] in self.answers:
                        raise AssertionError(f"answered twice: {answer['custom_id']}")
                    self.answers[answer["custom_id"]] = answer

    def own_lines(self):
        """Lines on stderr, without the launcher's: it puts its own between lines of dashes."""
        lines, foreign = [], False
        for line in self.stderr.splitlines():
            if line.startswith("----------"):
                foreign = not foreign
            elif not foreign and line and not line.startswith("mpirun"):
                lines.append(line)
        return lines

    def error_lines(self):
        return [line for line in self.stderr.splitlines() if "error" in line and
                "mpirun" not in line and not line.startswith("---")]

    def tokens(self):
        return {name: a["response"]["body"]["choices"][0]["token_ids"]
                for name, a in self.answers.items() if a["response"]}


def sheaf(ranks, arguments, limit_s=600, before=None, extra_env=None):
    """before: called in the new process before it becomes sheaf (limits)."""
    start = time.monotonic()
    # pylint: disable=subprocess-popen-preexec-fn
    done = subprocess.run(command(ranks, arguments, limit_s), capture_output=True, text=True,
                          env=dict(environment(), **(extra_env or {})), stdin=subprocess.DEVNULL,
                          check=False, preexec_fn=before)
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - start, None)


def run(ranks, config_text, input_text, arguments=(), limit_s=600, folder=None):
    """One job; the folder is removed unless it is the caller's."""
    place = folder or Folder()
    count = len(os.listdir(place.path))
    job = place.file(f"job{count}.yaml", config_text)
    given = place.file(f"in{count}.jsonl", input_text)
    output = place.file(f"out{count}.jsonl")
    start = time.monotonic()
    done = subprocess.run(
        command(ranks, ["run", job, "--input", given, "--output", output, *arguments], limit_s),
        capture_output=True, text=True, env=environment(), stdin=subprocess.DEVNULL, check=False)
    result = Done(done.returncode, done.stdout, done.stderr, time.monotonic() - start, output)
    if folder is None:
        place.remove()
    return result
