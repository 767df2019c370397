"""The baseline `window`: the first num_sink_tokens and the last recent_tokens slots stay.

The prompt is attended in full; what lies between goes at its end and after every decode step, so a
decode row sees at most num_sink_tokens + recent_tokens + 1 slots.  Nothing was left open.
"""
import attention
from attention import np

DEFAULTS = {"num_sink_tokens": 4, "recent_tokens": 1024}


class Window(attention.Method):
    def __init__(self, options):
        super().__init__()
        self.sinks, self.recent = options["num_sink_tokens"], options["recent_tokens"]

    def cut(self, lane):
        extra = lane.slots - self.sinks - self.recent
        if extra > 0:
            lane.keep(np.delete(np.arange(lane.slots), slice(self.sinks, self.sinks + extra)))
            self.counts["slots_evicted"] += extra

    def prompt_end(self, layer, lanes, tokens, all_rows, last):
        for lane in lanes:
            self.cut(lane)

    def after_row(self, layer, lanes, tokens, weights):
        for lane in lanes:
            self.cut(lane)


def run(trace, options=None, element_bytes=4):
    return attention.drive(trace, Window(attention.filled(DEFAULTS, options)), element_bytes)
