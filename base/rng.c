/* base/rng.c: Philox 4x32 with ten rounds, and the hash that turns a custom_id into a stream. */
#include "base/rng.h"

#include <math.h>

enum { ROUNDS = 10 };

/* One round of Philox multiplies words 0 and 2 by fixed odd constants into high and low halves and
 * mixes them with the other two words and the key; the key then moves on by two Weyl constants
 * (golden ratio and sqrt(3) - 1, as 32-bit fractions). */
void sf_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t p0 = (uint64_t)0xd2511f53u * c0;
        uint64_t p1 = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* The counter is (index, stream), low words first: 2^64 draws in each of 2^64 streams of a key. */
uint64_t sf_rng_u64(uint64_t key, uint64_t stream, uint64_t index)
{
    const uint32_t counter[4] = { (uint32_t)index, (uint32_t)(index >> 32),
                                  (uint32_t)stream, (uint32_t)(stream >> 32) };
    const uint32_t words[2] = { (uint32_t)key, (uint32_t)(key >> 32) };
    uint32_t out[4];
    sf_philox(counter, words, out);
    return out[0] | (uint64_t)out[1] << 32;
}

double sf_rng_uniform(uint64_t key, uint64_t stream, uint64_t index)
{
    return (double)(sf_rng_u64(key, stream, index) >> 11) * 0x1p-53;
}

/* By Box and Muller. */
double sf_rng_normal(uint64_t key, uint64_t stream, uint64_t index)
{
    double u = 1 - sf_rng_uniform(key, stream, 2 * index);
    double angle = 2 * acos(-1) * sf_rng_uniform(key, stream, 2 * index + 1);
    return sqrt(-2 * log(u)) * cos(angle);
}

/* FNV-1a spreads the last bytes badly over the high bits; the finisher (two multiplications
 * between shifts, David Stafford's "mix 13") makes each input bit flip about half of the output. */
uint64_t sf_hash64(const void *bytes, size_t count)
{
    const unsigned char *byte = bytes;
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < count; i++) hash = (hash ^ byte[i]) * 0x100000001b3u;
    hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
    hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
    return hash ^ (hash >> 31);
}
