/* kernels/cuda/basis_tensor.h: logits of 16-bit slots of a basis, by the tensor cores.
 *
 *   piece   SF_BASIS_THREADS slots of a split, 32 a warp: which place in the pool, bias and
 *           position each has is staged once
 *   pair    elements of a key that are turned together, i and i + rope_dim / 2; those behind
 *           rope_dim make pairs too, half of them away from each other, and are not turned
 *   tile    eight pairs of a lane: 16 rows of a product, the first elements and then the second
 *   chunk   SF_PASS_CHUNK successive tiles of a lane, of which a thread adds up its products with a
 *           query
 *   pass    up to SF_PASS_TILES tiles of a warp's slots, in registers: of two lanes, the same tile
 *           of each side by side, a chunk of each; of more, if a lane has no more than that; or of
 *           one lane
 *
 * In a pass a_k comes from the pages to registers, once for all its lanes, and b_k through shared
 * memory, once for all warps: 16 rows of the rank at a time, into one of two buffers while others
 * still multiply what is in the other.  Both elements of a pair come to one thread, which turns
 * them; the turns too are read once for all lanes of a pass.  The products with a query go over a
 * thread's pairs in their order, then over the eight threads that have a slot.
 *
 *     buffer    [SF_PASS_TILES][16 rows][8 words]
 *               word 2q + h: rows 2q + 8h and 2q + 8h + 1 of the rank
 *
 * So a key's sum is in the order of the rank, and a logit's goes chunk by chunk, whatever the pass
 * that a chunk is in: it depends on k_dim and rope_dim alone. */
#ifndef SHEAF_KERNELS_CUDA_BASIS_TENSOR_H
#define SHEAF_KERNELS_CUDA_BASIS_TENSOR_H
#include "kernels/cuda/basis.h"
#include "kernels/cuda/tensor.h"

enum {
    SF_PASS_TILES = 8, SF_PASS_CHUNK = 4,
    SF_PASS_GROUPS = SF_WARP / 8,       /* of eight slots, of a warp */
    SF_PASS_WORDS = SF_PASS_TILES * 16 * 8,             /* a buffer's */
    SF_PASS_ITEMS = SF_PASS_WORDS / 2 / SF_BASIS_THREADS /* that a thread stages */
};

/* What a block has in shared memory for it. */
struct sf_pass_room {
    sf_shared<float> logits;            /* [vectors][SF_SPLIT_SLOTS] of the split */
    sf_shared<const float> q;           /* [vectors][k_dim] */
    sf_shared<uint32_t> buffers;        /* [2][SF_PASS_WORDS] */
    sf_shared<uint64_t> places;         /* [SF_BASIS_THREADS] of a slot's row in the pool, in bytes;
                                           all ones: there is none */
    sf_shared<float> bias;              /* [SF_BASIS_THREADS] */
    sf_shared<int32_t> pos;             /* [SF_BASIS_THREADS], -1: not to be turned */
};
enum { SF_PASS_ROOM_FLOATS = 2 * SF_PASS_WORDS + 4 * SF_BASIS_THREADS };

/* Tiles tile_first .. of lanes lane_first .. lane_first + lanes - 1 of the unit. */
struct sf_pass { int32_t lane_first, lanes, tile_first, tiles; };

/* The elements of pair p: the first is at `at`, the other `apart` behind it. */
struct sf_pair { int32_t at, apart; };
static __device__ __forceinline__ struct sf_pair sf_pair_of(int32_t p, int32_t half, int32_t k_dim)
{
    struct sf_pair pair = { p, half };
    if (p >= half) pair = { half + p, k_dim / 2 - half };
    return pair;
}

/* Rows i and i + 1 of the rank in a word; what lies behind the rank is 0. */
static __device__ __forceinline__ uint32_t sf_within(uint32_t pair, int32_t i, int32_t rank)
{
    return i + 1 < rank ? pair : i < rank ? pair & 0xffffu : 0;
}

/* a_k of one slot, a thread's words of a product; `slot`: its first element, if there is one. */
template <enum sf_dtype D>
static __device__ __forceinline__ void sf_slot_words(sf_global<const uint16_t> slot, int32_t first,
                                                     int32_t rank, uint32_t (&b)[2])
{
    SF_UNROLL
    for (int h = 0; h < 2; h++) {
        int32_t i = first + 2 * (int32_t)(threadIdx.x % 4) + 8 * h;
        b[h] = 0;
        if (!slot || i >= rank) continue;
        if (D == SF_BF16) {
            b[h] = sf_within(sf_as<const uint32_t>(slot)[i / 2 * SF_BLOCK_SLOTS], i, rank);
        } else {
            b[h] = slot[i * SF_BLOCK_SLOTS];
            if (i + 1 < rank)
                b[h] |= (uint32_t)(uint16_t)slot[(i + 1) * SF_BLOCK_SLOTS] << 16;
        }
    }
}

/* b_k of two elements in rows i and i + 1 of the rank, i even; `block`: the rows' 16. */
template <enum sf_dtype D>
static __device__ __forceinline__ void sf_factor_words(sf_global<const unsigned char> block,
                                                       int32_t row, int32_t e, int32_t other,
                                                       uint32_t (&word)[2])
{
    if (D == SF_F16) {
        word[0] = sf_as<const uint32_t>(block)[(e * SF_BLOCK_SLOTS + row) / 2];
        word[1] = sf_as<const uint32_t>(block)[(other * SF_BLOCK_SLOTS + row) / 2];
        return;
    }
    sf_two two = sf_as<const sf_two>(block)[(e / 2 * SF_BLOCK_SLOTS + row) / 2];
    word[0] = e % 2 ? sf_highs(two.word[0], two.word[1]) : sf_lows(two.word[0], two.word[1]);
    if (other / 2 != e / 2)
        two = sf_as<const sf_two>(block)[(other / 2 * SF_BLOCK_SLOTS + row) / 2];
    word[1] = other % 2 ? sf_highs(two.word[0], two.word[1]) : sf_lows(two.word[0], two.word[1]);
}

/* Where a thread finds the factors that it stages: of each item, the lane's first page of them and
 * the page that it is in. */
struct sf_pass_pages { int32_t first[SF_PASS_ITEMS], now[SF_PASS_ITEMS]; };

/* Rows first .. first + 15 of b_k into a buffer.  An item is two rows of the rank and two pairs'
 * elements; which of these goes first changes, so that a warp writes to all banks. */
template <enum sf_dtype D>
static __device__ __forceinline__ void sf_factors_stage(const struct sf_cuda_view &view,
                                                        const struct sf_basis &basis,
                                                        const struct sf_pass &pass, int32_t first,
                                                        struct sf_pass_pages &pages,
                                                        sf_shared<uint32_t> buffer)
{
    int32_t half = basis.rope_dim / 2, k_dim = basis.factors.k_dim;
    int32_t rp = (int32_t)threadIdx.x % 8, x = (int32_t)threadIdx.x / 8 % 8;
    int32_t row = first % basis.factors.page_slots;
    SF_UNROLL
    for (int n = 0; n < SF_PASS_ITEMS; n++) {
        int32_t t = (int32_t)threadIdx.x / 64 + n * (SF_BASIS_THREADS / 64);
        if (t >= pass.tiles) continue;
        if (row == 0 || first == 0)
            pages.now[n] = view.pages[pages.first[n] + first / basis.factors.page_slots];
        int32_t p = (pass.tile_first + t / pass.lanes) * 8 + x % 4 * 2;
        struct sf_pair one = sf_pair_of(p, half, k_dim), two = sf_pair_of(p + 1, half, k_dim);
        int32_t e = x < 4 ? one.at : one.at + one.apart;
        int32_t other = x < 4 ? two.at : two.at + two.apart;
        uint32_t word[2];
        sf_factor_words<D>(view.pool + ((size_t)pages.now[n] * view.page_bytes +
                                        (size_t)row * (size_t)k_dim * 2),
                           2 * rp, e, other, word);
        int32_t swap = x / 2 % 2, at = (t * 16 + 2 * x) * 8 + rp % 4 * 2 + rp / 4;
        SF_UNROLL
        for (int w = 0; w < 2; w++)
            buffer[at + 8 * (w ^ swap)] = sf_within(swap ? word[1 - w] : word[w], first + 2 * rp,
                                                    basis.rank_k);
    }
}

/* Keys of a pass: sum[t][n] has of tile t what a thread has of a product with the slots of group n
 * (tensor.h).  `busy`: the warp has slots. */
template <enum sf_dtype D>
static __device__ __forceinline__ void sf_pass_keys(
    const struct sf_cuda_view &view, const struct sf_basis &basis, const struct sf_pass &pass,
    const struct sf_pass_room &room, bool busy, struct sf_pass_pages &pages,
    float (&sum)[SF_PASS_TILES][SF_PASS_GROUPS][4])
{
    int32_t r = (int32_t)(threadIdx.x % SF_WARP / 4), q = (int32_t)(threadIdx.x % 4);
    sf_global<const uint16_t> slot[SF_PASS_GROUPS] = {};
    SF_UNROLL
    for (int n = 0; n < SF_PASS_GROUPS; n++) {
        uint64_t place = room.places[(int32_t)(threadIdx.x / SF_WARP) * SF_WARP + 8 * n + r];
        if (place != ~(uint64_t)0) slot[n] = sf_as<const uint16_t>(view.pool + place);
    }
    SF_UNROLL
    for (int i = 0; i < SF_PASS_TILES * SF_PASS_GROUPS * 4; i++)
        sum[i / 4 / SF_PASS_GROUPS][i / 4 % SF_PASS_GROUPS][i % 4] = 0;
    for (int32_t first = 0; first < basis.rank_k; first += 16) {
        sf_shared<uint32_t> buffer = room.buffers + first / 16 % 2 * SF_PASS_WORDS;
        sf_factors_stage<D>(view, basis, pass, first, pages, buffer);
        __syncthreads();
        if (!busy) continue;
        uint32_t b[SF_PASS_GROUPS][2];
        SF_UNROLL
        for (int n = 0; n < SF_PASS_GROUPS; n++)
            sf_slot_words<D>(slot[n], first, basis.rank_k, b[n]);
        __syncwarp();                   /* threads without a slot took another way */
        sf_shared<const sf_two> two = sf_as<const sf_two>(buffer);
        SF_UNROLL
        for (int t = 0; t < SF_PASS_TILES; t++) {
            if (t >= pass.tiles) continue;
            sf_two low = two[(t * 16 + r) * 4 + q], high = two[(t * 16 + r + 8) * 4 + q];
            sf_quad a = { { low.word[0], high.word[0], low.word[1], high.word[1] } };
            SF_UNROLL
            for (int n = 0; n < SF_PASS_GROUPS; n++) sf_mma<D>(sum[t][n], a, b[n][0], b[n][1]);
        }
    }
}

/* A thread's slots are 8n + 2q + b of its warp's: number 2n + b of the eight. */
static __device__ __forceinline__ void sf_pass_turn(
    const struct sf_basis &basis, const struct sf_pass &pass, sf_shared<const int32_t> pos,
    float (&sum)[SF_PASS_TILES][SF_PASS_GROUPS][4])
{
    int32_t r = (int32_t)(threadIdx.x % SF_WARP / 4), q = (int32_t)(threadIdx.x % 4);
    int32_t half = basis.rope_dim / 2, lane = 0, tile = pass.tile_first;
    int32_t at[2 * SF_PASS_GROUPS];
    float cos[2 * SF_PASS_GROUPS] = {}, sin[2 * SF_PASS_GROUPS] = {};
    SF_UNROLL
    for (int i = 0; i < 2 * SF_PASS_GROUPS; i++)
        at[i] = pos[(int32_t)(threadIdx.x / SF_WARP) * SF_WARP + i / 2 * 8 + 2 * q + i % 2];
    SF_UNROLL
    for (int t = 0; t < SF_PASS_TILES; t++) {
        int32_t p = tile * 8 + r;
        if (t < pass.tiles && p < half) {
            SF_UNROLL
            for (int i = 0; i < 2 * SF_PASS_GROUPS; i++) {
                if (at[i] < 0) continue;
                if (lane == 0) {
                    size_t turn = (size_t)at[i] * (size_t)basis.rope_dim + (size_t)p;
                    cos[i] = basis.turns[turn];
                    sin[i] = basis.turns[turn + (size_t)half];
                }
                float low = sum[t][i / 2][i % 2], high = sum[t][i / 2][2 + i % 2];
                sum[t][i / 2][i % 2] = low * cos[i] - high * sin[i];
                sum[t][i / 2][2 + i % 2] = high * cos[i] + low * sin[i];
            }
        }
        if (++lane == pass.lanes) lane = 0, tile++;
    }
}

/* The sum over the eight threads of a q of what each has of eight slots; thread r gets slot r's. */
static __device__ __forceinline__ float sf_pass_sum(float (&part)[2 * SF_PASS_GROUPS])
{
    SF_UNROLL
    for (int bit = 4; bit > 0; bit /= 2) {
        bool upper = (threadIdx.x / 4 & (unsigned)bit) != 0;
        SF_UNROLL
        for (int i = 0; i < bit; i++) {
            float away = upper ? part[i] : part[i + bit], mine = upper ? part[i + bit] : part[i];
            part[i] = mine + __shfl_xor_sync(SF_FULL_MASK, away, 4 * bit);
        }
    }
    return part[0];
}

/* What a chunk of number `lane` of the pass's lanes adds to the logits of one vector. */
static __device__ __forceinline__ float sf_pass_dot(
    const struct sf_pass &pass, int32_t lane, int32_t chunk, int32_t half, int32_t k_dim,
    sf_shared<const float> q, const float (&sum)[SF_PASS_TILES][SF_PASS_GROUPS][4])
{
    int32_t r = (int32_t)(threadIdx.x % SF_WARP / 4), at = 0, tile = pass.tile_first;
    float part[2 * SF_PASS_GROUPS] = {};
    SF_UNROLL
    for (int t = 0; t < SF_PASS_TILES; t++) {
        if (t < pass.tiles && at == lane && tile / SF_PASS_CHUNK == chunk) {
            struct sf_pair pair = sf_pair_of(tile * 8 + r, half, k_dim);
            float low = q[pair.at], high = q[pair.at + pair.apart];
            SF_UNROLL
            for (int i = 0; i < 2 * SF_PASS_GROUPS; i++)
                part[i] = fmaf(high, sum[t][i / 2][2 + i % 2],
                               fmaf(low, sum[t][i / 2][i % 2], part[i]));
        }
        if (++at == pass.lanes) at = 0, tile++;
    }
    __syncwarp();
    return sf_pass_sum(part);
}

/* Logits of the vectors of the pass's lanes; `from`: the piece's first slot in the split, of which
 * `slots` are there. */
static __device__ __forceinline__ void sf_pass_logits(
    const struct sf_cuda_view &view, const struct sf_unit &unit, const struct sf_basis &basis,
    const struct sf_pass &pass, const struct sf_pass_room &room, int32_t from, int32_t slots,
    const float (&sum)[SF_PASS_TILES][SF_PASS_GROUPS][4])
{
    int32_t r = (int32_t)(threadIdx.x % SF_WARP / 4), k_dim = view.layout.k_dim;
    int32_t s = (int32_t)(threadIdx.x / SF_WARP) * SF_WARP + r / 2 * 8 +
                2 * (int32_t)(threadIdx.x % 4) + r % 2;
    int32_t end = pass.tile_first + pass.tiles / pass.lanes;
    bool last = end * 16 == k_dim;
    for (int32_t l = 0; l < pass.lanes; l++) {
        for (int32_t j = 0; j < unit.vectors; j++) {
            int32_t v = (pass.lane_first + l) * unit.vectors + j;
            sf_shared<float> logit = room.logits + (v * SF_SPLIT_SLOTS + from + s);
            float dot = 0;
            if (s < slots && pass.tile_first > 0) dot = logit[0];
            for (int32_t t = pass.tile_first; t < end; t += SF_PASS_CHUNK)
                dot += sf_pass_dot(pass, l, t / SF_PASS_CHUNK, basis.rope_dim / 2, k_dim,
                                   room.q + v * k_dim, sum);
            if (s < slots) {
                bool seen = !last || room.bias[s] != -INFINITY;
                if (last && seen && view.window != 0) {
                    struct sf_cuda_lane lane = sf_basis_lane(view, unit, pass.lane_first + l);
                    int32_t row = lane.row_first + (unit.first + j) / lane.q_heads;
                    seen = (int64_t)(int32_t)room.pos[s] >
                           (int64_t)(int32_t)view.row_pos[row] - view.window;
                }
                if (last) dot = seen ? fmaf(dot, view.scale, room.bias[s]) : -INFINITY;
                logit[0] = dot;
            }
            __syncwarp();
        }
    }
}

/* Where the slots of a piece are: a thread finds one's. */
template <bool PICKED>
static __device__ __forceinline__ void sf_piece_stage(const struct sf_cuda_view &view,
                                                      const struct sf_cuda_lane &lane,
                                                      const struct sf_basis &basis,
                                                      const struct sf_piece &piece,
                                                      const struct sf_pass_room &room)
{
    int32_t s = (int32_t)threadIdx.x, number = sf_piece_slot<PICKED>(piece, s);
    uint64_t place = ~(uint64_t)0;
    float bias = -INFINITY;
    int32_t pos = -1;
    if (number >= 0) {
        int32_t page = view.pages[lane.pages_first + number / basis.layout.page_slots];
        place = (uint64_t)page * view.page_bytes;
        struct sf_cuda_slot at = { view.pool + place, number % basis.layout.page_slots };
        bias = sf_bias_of(basis.layout, at);
        pos = sf_pos_of(basis.layout, at);
        place += sf_key_at(basis.layout, at.slot, 0) * 2;
    }
    room.places[s] = place;
    room.bias[s] = bias;
    room.pos[s] = pos;
}

/* Logits of `count` slots of the unit's split; `lane` is turned to the part. */
template <enum sf_dtype D, bool PICKED>
static __device__ __forceinline__ void sf_basis_logits(
    const struct sf_cuda_view &view, const struct sf_cuda_lane &lane, const struct sf_unit &unit,
    const struct sf_basis &basis, int32_t count, sf_global<const int32_t> picks,
    const struct sf_pass_room &room)
{
    int32_t tiles = view.layout.k_dim / 16, warp = (int32_t)(threadIdx.x / SF_WARP);
    int32_t together = SF_PASS_TILES / (tiles < SF_PASS_CHUNK ? tiles : SF_PASS_CHUNK); /* lanes */
    for (int32_t s = 0; s < count; s += SF_BASIS_THREADS) {
        struct sf_piece piece = { unit.from + s, count - s, picks };
        if (PICKED) piece.picks = picks + s;
        __syncthreads();
        sf_piece_stage<PICKED>(view, lane, basis, piece, room);
        for (int32_t l = 0; l < unit.lanes; l += together) {
            int32_t here = unit.lanes - l < together ? unit.lanes - l : together;
            struct sf_pass pass = { l, here, 0, 0 };
            int32_t step = pass.lanes == 1 ? SF_PASS_TILES : SF_PASS_CHUNK;
            for (; pass.tile_first < tiles; pass.tile_first += step) {
                struct sf_pass_pages pages;
                float sum[SF_PASS_TILES][SF_PASS_GROUPS][4];
                pass.tiles = pass.lanes * (tiles - pass.tile_first < step ? tiles - pass.tile_first
                                                                          : step);
                SF_UNROLL
                for (int n = 0; n < SF_PASS_ITEMS; n++) {
                    int32_t t = (int32_t)threadIdx.x / 64 + n * (SF_BASIS_THREADS / 64);
                    pages.first[n] = basis.factor_first;
                    if (pass.lane_first + t % pass.lanes > 0)
                        pages.first[n] = sf_basis_page(view, lane, unit.part,
                                                       pass.lane_first + t % pass.lanes, false);
                }
                __syncthreads();
                bool busy = warp * SF_WARP < count - s;
                sf_pass_keys<D>(view, basis, pass, room, busy, pages, sum);
                if (!busy) continue;
                sf_pass_turn(basis, pass, room.pos, sum);
                sf_pass_logits(view, unit, basis, pass, room, s, count - s, sum);
            }
        }
    }
}

#endif
