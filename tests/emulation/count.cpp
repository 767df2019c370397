/* tests/emulation/count.cpp: what kernels move, counted as a GPU would count it.
 *
 * An instruction of a warp is known by the place in the code that makes an access and by how often
 * the thread has come by: the lanes' n-th accesses from one place belong together.  (Lanes that go
 * round a loop unequally often are so taken for lanes that met as long as they could.)  Of each
 * instruction the bytes are kept until the block ends, and then
 *
 *   device memory   sectors of 32 bytes that it touches; bytes of them that it uses
 *   shared memory   turns: 4-byte accesses go in one, 8- and 16-byte ones by halves and quarters of
 *                   a warp, each as often as two different words lie in one of the 32 banks
 *   special         a call of a special function, known by its place in the same way
 *   copies          asynchronous ones: sectors as of a load, turns as of a store to shared memory
 *
 * Warp operations, products and barriers are counted as they complete. */
#include <algorithm>
#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>
#include "tests/emulation/internal.h"

namespace emu {

bool counting;

namespace {

struct key {
    const void *place;
    uint32_t warp, turn;
    uint8_t way;
    bool operator==(const key &other) const
    {
        return place == other.place && warp == other.warp && turn == other.turn &&
               way == other.way;
    }
};
struct key_hash {
    size_t operator()(const key &k) const
    {
        return ((size_t)k.place * 31 + k.warp) * 1000003 + k.turn * 16 + k.way;
    }
};
struct access { size_t address; uint32_t bytes, lane; };

std::unordered_map<key, std::vector<access>, key_hash> instructions;
std::unordered_map<key, uint32_t, key_hash> turns;      /* warp: the thread, turn: 0 */
std::vector<std::string> names;
std::vector<emu_count> totals;

emu_count &total_of(const char *kernel)
{
    for (size_t i = 0; i < names.size(); i++)
        if (names[i] == kernel) return totals[i];
    names.push_back(kernel);
    totals.push_back({});
    return totals.back();
}

/* Different units of `size` bytes that the accesses touch. */
int64_t different(const std::vector<access> &all, size_t size)
{
    std::vector<size_t> units;
    for (const access &a : all)
        for (size_t u = a.address / size; u <= (a.address + a.bytes - 1) / size; u++)
            units.push_back(u);
    std::sort(units.begin(), units.end());
    return std::unique(units.begin(), units.end()) - units.begin();
}

/* Turns beyond those that the width of the accesses makes necessary. */
int64_t conflicts(const std::vector<access> &all)
{
    int64_t extra = 0;
    uint32_t bytes = all[0].bytes, lanes = bytes <= 4 ? 32 : 128 / bytes;
    for (uint32_t first = 0; first < 32; first += lanes) {
        std::vector<size_t> words;
        int64_t in_bank[32] = {}, most = 0;
        for (const access &a : all)
            for (size_t w = a.address / 4; a.lane / lanes == first / lanes &&
                                           w <= (a.address + a.bytes - 1) / 4; w++)
                words.push_back(w);
        std::sort(words.begin(), words.end());
        words.erase(std::unique(words.begin(), words.end()), words.end());
        for (size_t w : words) most = std::max(most, ++in_bank[w % 32]);
        if (most > 1) extra += most - 1;
    }
    return extra;
}

void add_read(emu_count &total, const std::vector<access> &all)
{
    total.read_sectors += different(all, 32);
    total.read_bytes += different(all, 1);
}

void add_written(emu_count &total, const std::vector<access> &all)
{
    total.written_sectors += different(all, 32);
    total.written_bytes += different(all, 1);
}

void add_shared(emu_count &total, const std::vector<access> &all)
{
    total.shared++;
    total.conflicts += conflicts(all);
}

}

void count_access(const void *address, size_t bytes, count_way way, const void *place)
{
    uint32_t &turn = turns[{ place, now.thread, 0, way }];
    instructions[{ place, now.thread / 32, turn++, way }].push_back(
        { (size_t)address, (uint32_t)bytes, now.thread % 32 });
}

void count_block(const char *kernel)
{
    emu_count &total = total_of(kernel);
    total.blocks++;
    for (const auto &one : instructions) {
        const std::vector<access> &all = one.second;
        switch (one.first.way) {
        case COUNT_READ:
            total.loads++;
            add_read(total, all);
            break;
        case COUNT_WRITE:
            total.stores++;
            add_written(total, all);
            break;
        case COUNT_ATOMIC:
            total.atomics++;
            add_read(total, all);
            add_written(total, all);
            break;
        case COUNT_SHARED_READ:
            total.shared_loads++;
            add_shared(total, all);
            break;
        case COUNT_SHARED_WRITE:
            total.shared_stores++;
            add_shared(total, all);
            break;
        case COUNT_SHARED_ATOMIC:
            total.atomics++;
            add_shared(total, all);
            break;
        case COUNT_COPY:
            total.copies++;
            add_read(total, all);
            break;
        case COUNT_COPY_SHARED: add_shared(total, all); break;
        case COUNT_COPY_WAIT: total.copy_waits++; break;
        case COUNT_SPECIAL: total.special++; break;
        }
    }
    instructions.clear();
    turns.clear();
}

void count_launch(const char *kernel) { total_of(kernel).launches++; }
void count_warp(const char *kernel, int64_t emu_count::*which) { total_of(kernel).*which += 1; }

void special_called()
{
    if (counting && in_kernel())
        count_access(nullptr, 1, COUNT_SPECIAL, __builtin_return_address(0));
}

}

extern "C" void emu_set_counting(int on)
{
    emu::counting = on != 0;
    if (!on) return;
    emu::names.clear();
    emu::totals.clear();
}

extern "C" int emu_counts(struct emu_count *out, int most)
{
    int n = 0;
    for (; n < most && n < (int)emu::names.size(); n++) {
        out[n] = emu::totals[(size_t)n];
        snprintf(out[n].kernel, sizeof out[n].kernel, "%s", emu::names[(size_t)n].c_str());
    }
    return n;
}
