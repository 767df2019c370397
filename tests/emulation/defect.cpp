/* tests/emulation/defect.cpp: reports a defect, and finds races from what was marked. */
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include "tests/emulation/internal.h"

namespace emu {

std::recursive_mutex lock;
bool checks = true, reversed = false;

void defect(const char *kind, const char *format, ...)
{
    char text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fflush(stdout);
    fprintf(stderr, "cuda-emulated: %s: %s%s\n", kind, text, where());
    abort();
}

/* Is what happened at `then` over for the running thread, so that it may build on it? */
static bool ordered(const moment &then)
{
    if (then.launch != now.launch || then.thread == now.thread) return true;
    if (then.thread / 1024 != now.thread / 1024) return false;
    if (then.barrier < now.barrier) return true;
    return then.thread / 32 == now.thread / 32 && then.warp_sync < now.warp_sync;
}

/* The same for reads by many. */
static bool reads_ordered(const mark *m)
{
    if (m->read.launch != now.launch) return true;
    if (m->readers == mark::GRID) return false;
    if (m->readers == mark::ONE) return ordered(m->read);
    if (m->read.thread / 1024 != now.thread / 1024) return false;
    if (m->read.barrier < now.barrier) return true;
    return m->readers == mark::WARP && m->read.thread / 32 == now.thread / 32 &&
           m->read.warp_sync < now.warp_sync;
}

[[noreturn]] static void race(const char *what, const moment &then, const char *space,
                              size_t offset)
{
    defect("race", "%s of %s memory at byte %zu, by thread %u of block %u without a barrier "
           "between", what, space, offset, then.thread % 1024, then.thread / 1024);
}

void mark_read(mark *m, const char *space, size_t offset)
{
    if (!ordered(m->write)) race("read after a write", m->write, space, offset);
    /* Readers of before the last barrier need not be kept: a later write is ordered to them if it
     * is to this one. */
    bool here = m->read.thread / 1024 == now.thread / 1024;
    bool warp = m->read.thread / 32 == now.thread / 32 && m->readers != mark::BLOCK;
    if (m->read.launch != now.launch) m->readers = mark::ONE;
    else if (!here || m->readers == mark::GRID) m->readers = mark::GRID;
    else if (m->read.barrier < now.barrier) m->readers = mark::ONE;
    else if (warp && m->read.warp_sync < now.warp_sync) m->readers = mark::ONE;
    else if (m->read.thread != now.thread) m->readers = warp ? mark::WARP : mark::BLOCK;
    m->read = now;
}

void mark_write(mark *m, const char *space, size_t offset)
{
    if (!ordered(m->write)) race("write after a write", m->write, space, offset);
    if (!reads_ordered(m)) race("write after a read", m->read, space, offset);
    m->write = now;
}

/* Atomics do not race with each other; each leaves no mark, so that a plain access is only held
 * against plain ones. */
void mark_atomic(mark *m, const char *space, size_t offset)
{
    if (!ordered(m->write)) race("atomic after a plain write", m->write, space, offset);
    if (!reads_ordered(m)) race("atomic after a plain read", m->read, space, offset);
}

}

extern "C" void emu_set_checks(int on) { emu::checks = on != 0; }
extern "C" void emu_set_reversed(int on) { emu::reversed = on != 0; }
