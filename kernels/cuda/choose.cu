/* kernels/cuda/choose.cu: choices and scores, a block for each row of logits.
 *
 * The vocabulary is never sorted.  Where a filter ends is found digit by digit (a radix selection):
 * of the keys of all logits (kernels/choice.h) the block counts, or weighs, those of each value of
 * the highest 8 bits, walks from the greatest down to the value in which the limit falls, and goes
 * on with the next 8 bits among the keys that begin so.  After four rounds a key is known, and how
 * many of the tokens that have exactly this logit are still in.
 *
 *   pass over the row     | for
 *   look                  | greatest logit, NaN, +inf; twice in a row that chooses
 *   sum, rank             | scores
 *   4 digits by count     | tops, top_k
 *   weigh                 | top_p: the weight of what top_k left
 *   4 digits by weight    | top_p; from the second on exponentials of few tokens
 *   cut                   | weight and ties of each warp's part of the vocabulary
 *   walk                  | one warp's part, to the token that is drawn
 *
 * Each warp has a part of the vocabulary, so that ties and the draw go in the order of tokens.
 * Sums are of whole numbers, so atomics and reductions in any order have one result, that of ref.
 *
 * Read per row: 4 bytes x vocabulary for each pass, the first from memory and the others from the
 * L2 cache (64 rows of 49,152 logits are 12.6 MB).  Bound by f64 exponentials where top_p asks for
 * them.  Not measured on a GPU yet. */
#include "kernels/choice.h"
#include "kernels/cuda/block.h"
#include "kernels/cuda/entries.h"

enum { THREADS = 512, WARPS = THREADS / SF_WARP, DIGITS = 256, DIGIT_BITS = 8 };
typedef unsigned long long whole;

/* What a row of the job is on the device; its lists begin at `list` in the job's, biases first. */
struct alignas(128) row_in {
    double temperature, floor, top_p, presence, frequency, repetition, u;
    int32_t row, sample, top_k, biases, seen, list, score, tops;
};
/* A token of a list with its bias, as bits, or its count.  What its logit was stands in an array
 * beside the list. */
struct alignas(8) listed { int32_t token, value; };
struct lists { sf_global<const struct listed> entry; sf_global<float> before; };

struct shared_room {
    sf_shared<whole> digit;             /* [DIGITS] */
    sf_shared<whole> part;              /* [WARPS] */
    sf_shared<int32_t> ties;            /* [WARPS] */
    sf_shared<uint32_t> key;            /* [WARPS] */
    sf_shared<int32_t> token;           /* [WARPS] */
};

/* The row, and what belongs to a choice from it. */
struct choosing {
    sf_global<const float> logits;
    int32_t vocab, part;                /* tokens of a warp's part, a multiple of its lanes */
    float highest;
    double temperature, floor;
};
/* Tokens of keys above this one, and the first `ties` of it. */
struct limit { uint32_t key; int32_t ties; };

static __device__ __forceinline__ unsigned warp_of_thread() { return threadIdx.x / SF_WARP; }
static __device__ __forceinline__ unsigned lane_of_thread() { return threadIdx.x % SF_WARP; }

static __device__ __forceinline__ whole block_sum(whole value, sf_shared<whole> part)
{
    whole total = 0;
    for (int bits = SF_WARP / 2; bits > 0; bits /= 2)
        value += __shfl_xor_sync(SF_FULL_MASK, value, bits);
    if (lane_of_thread() == 0) part[warp_of_thread()] = value;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) total += part[w];
    __syncthreads();
    return total;
}

/* ---- the greatest --------------------------------------------------------------------------- */

struct best { uint32_t key; int32_t token; };   /* key 0: the row is broken */

static __device__ __forceinline__ void better(struct best *mine, uint32_t key, int32_t token)
{
    if (key > mine->key || (key == mine->key && token < mine->token)) {
        mine->key = key;
        mine->token = token;
    }
}

/* NaN and +inf have the greatest keys here, so they come through the reduction. */
static __device__ __forceinline__ struct best look(const struct choosing *c,
                                                       const struct shared_room *room)
{
    struct best best = { 0, c->vocab };
    for (int32_t i = (int32_t)threadIdx.x; i < c->vocab; i += THREADS) {
        float l = c->logits[i];
        better(&best, isnan(l) || l == INFINITY ? 0xffffffffu : sf_choice_key(l), i);
    }
    for (int bits = SF_WARP / 2; bits > 0; bits /= 2) {
        uint32_t key = __shfl_xor_sync(SF_FULL_MASK, best.key, bits);
        int32_t token = __shfl_xor_sync(SF_FULL_MASK, best.token, bits);
        better(&best, key, token);
    }
    if (lane_of_thread() == 0) {
        room->key[warp_of_thread()] = best.key;
        room->token[warp_of_thread()] = best.token;
    }
    __syncthreads();
    for (int w = 0; w < WARPS; w++) better(&best, room->key[w], room->token[w]);
    __syncthreads();
    if (best.key == 0xffffffffu || best.key == sf_choice_key(-INFINITY)) best.key = 0;
    return best;
}

/* ---- limits --------------------------------------------------------------------------------- */

/* Whether a token is there to be kept at all, and its x. */
static __device__ __forceinline__ bool there(const struct choosing *c, float logit, double *x_out)
{
    double x = sf_choice_exponent(logit, c->highest, c->temperature);
    *x_out = x;
    return x >= c->floor && logit > -INFINITY;
}

/* Adds to one digit for each lane.  Where all of a warp have the same one, as in the first round
 * nearly always, its lanes add up first. */
static __device__ __forceinline__ void digit_add(sf_shared<whole> digit, bool in, unsigned which,
                                                 whole value)
{
    unsigned first = __shfl_sync(SF_FULL_MASK, which, 0);
    if (__all_sync(SF_FULL_MASK, !in || which == first)) {
        if (!in) value = 0;
        for (int bits = SF_WARP / 2; bits > 0; bits /= 2)
            value += __shfl_xor_sync(SF_FULL_MASK, value, bits);
        if (lane_of_thread() == 0 && value > 0) atomicAdd(digit + first, value);
    } else if (in) {
        atomicAdd(digit + which, value);
    }
}

/* The digit in which the sum from the greatest one down reaches *need, which becomes what is needed
 * of that digit; -1 if all together do not.  Every warp comes to it alike: a lane has 8 digits. */
static __device__ __forceinline__ int32_t digit_find(sf_shared<whole> digit, whole *need)
{
    enum { EACH = DIGITS / SF_WARP };
    int lane = (int)lane_of_thread(), top = DIGITS - 1 - lane * EACH;
    whole mine = 0, before, up_to;
    for (int d = 0; d < EACH; d++) mine += digit[top - d];
    up_to = mine;
    for (int by = 1; by < SF_WARP; by *= 2) {
        whole other = __shfl_up_sync(SF_FULL_MASK, up_to, by);
        if (lane >= by) up_to += other;
    }
    unsigned reached = __ballot_sync(SF_FULL_MASK, up_to >= *need);
    if (reached == 0) return -1;
    int which = __ffs((int)reached) - 1;
    before = __shfl_sync(SF_FULL_MASK, up_to - mine, which);
    whole left = *need - before;
    for (int32_t d = DIGITS - 1 - which * EACH;; d--) {
        whole here = digit[d];
        if (left <= here) {
            *need = left;
            return d;
        }
        left -= here;
    }
}

/* Of the tokens that are there, the likeliest `need` (BY_WEIGHT: the fewest that weigh `need`). */
template <bool BY_WEIGHT>
static __device__ __forceinline__ struct limit select(const struct choosing *c, whole need,
                                      const struct shared_room *room)
{
    uint32_t key = 0;
    for (int shift = 32 - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        uint32_t above = shift == 32 - DIGIT_BITS ? 0 : 0xffffffffu << (shift + DIGIT_BITS);
        if (threadIdx.x < DIGITS) room->digit[threadIdx.x] = 0;
        __syncthreads();
        for (int32_t first = 0; first < c->vocab; first += THREADS) {
            int32_t i = first + (int32_t)threadIdx.x;
            float l = i < c->vocab ? (float)c->logits[i] : -INFINITY;
            uint32_t mine = sf_choice_key(l);
            double x = 0;
            bool in = i < c->vocab && (mine & above) == key && there(c, l, &x);
            if (!__any_sync(SF_FULL_MASK, in)) continue;
            whole value = 1;
            if (BY_WEIGHT && in) value = (whole)sf_choice_weight(x);
            digit_add(room->digit, in, (mine >> shift) & (DIGITS - 1), value);
        }
        __syncthreads();
        int32_t found = digit_find(room->digit, &need);
        __syncthreads();
        if (found < 0) return { 0, 0 };         /* no key is 0: all are kept */
        key |= (uint32_t)found << shift;
    }
    if (BY_WEIGHT) {
        double x = sf_choice_exponent(sf_choice_logit(key), c->highest, c->temperature);
        whole each = (whole)sf_choice_weight(x);
        need = (need + each - 1) / each;
    }
    return { key, (int32_t)need };
}

/* ---- parts of the vocabulary, a warp each --------------------------------------------------- */

/* Weight above the limit and ties at it, by part: room->part, room->ties. */
static __device__ __forceinline__ void cut(const struct choosing *c, struct limit limit,
                           const struct shared_room *room)
{
    int32_t begin = (int32_t)warp_of_thread() * c->part, end = begin + c->part, ties = 0;
    whole weight = 0;
    if (end > c->vocab) end = c->vocab;
    for (int32_t i = begin + (int32_t)lane_of_thread(); i < end; i += SF_WARP) {
        float l = c->logits[i];
        uint32_t key = sf_choice_key(l);
        double x;
        if (key < limit.key || !there(c, l, &x)) continue;
        if (key == limit.key) ties++;
        else if (c->floor >= SF_CHOICE_LEAST) weight += (whole)sf_choice_weight(x);
    }
    for (int bits = SF_WARP / 2; bits > 0; bits /= 2) {
        weight += __shfl_xor_sync(SF_FULL_MASK, weight, bits);
        ties += __shfl_xor_sync(SF_FULL_MASK, ties, bits);
    }
    if (lane_of_thread() == 0) {
        room->part[warp_of_thread()] = weight;
        room->ties[warp_of_thread()] = ties;
    }
    __syncthreads();
}

static __device__ __forceinline__ whole weight_at(const struct choosing *c, struct limit limit)
{
    if (limit.key == 0) return 0;
    return (whole)sf_choice_weight(
        sf_choice_exponent(sf_choice_logit(limit.key), c->highest, c->temperature));
}

/* Ties that a part may still have, of those that the parts before it leave. */
static __device__ __forceinline__ int32_t ties_here(int32_t left, int32_t ties)
{
    return ties < left ? ties : left;
}

static __device__ __forceinline__ whole kept_weight(const struct choosing *c, struct limit limit,
                                    const struct shared_room *room)
{
    whole total = (whole)(uint32_t)limit.ties * weight_at(c, limit);
    for (int w = 0; w < WARPS; w++) total += room->part[w];
    return total;
}

/* Of a warp's part, 32 tokens from `i` on: whether the lane's is kept.  *ties is what is left of
 * the limit's, for the lanes of the warp together. */
static __device__ __forceinline__ bool kept(const struct choosing *c, struct limit limit, int32_t i,
                                            int32_t *ties, float *logit_out, double *x_out)
{
    float l = i < c->vocab ? (float)c->logits[i] : -INFINITY;
    uint32_t key = sf_choice_key(l);
    bool in = i < c->vocab && key >= limit.key && there(c, l, x_out);
    bool tie = in && key == limit.key;
    unsigned mask = __ballot_sync(SF_FULL_MASK, tie);
    if (tie && __popc(mask & ((1u << lane_of_thread()) - 1)) >= *ties) in = false;
    *ties = *ties - ties_here(*ties, __popc(mask));
    *logit_out = l;
    return in;
}

/* The token whose cumulative weight is the first above the target, after cut(). */
static __device__ __forceinline__ int32_t draw(const struct choosing *c, struct limit limit,
                                                   double u, const struct shared_room *room)
{
    whole tie = weight_at(c, limit), sum = 0;
    whole target = (whole)sf_choice_target(u, (uint64_t)kept_weight(c, limit, room));
    int32_t left = limit.ties, w = 0;
    for (; w < WARPS - 1; w++) {
        int32_t ties = ties_here(left, room->ties[w]);
        whole here = room->part[w] + (whole)(uint32_t)ties * tie;
        if (sum + here > target) break;
        sum += here;
        left -= ties;
    }
    if ((int32_t)warp_of_thread() == w) {
        for (int32_t first = w * c->part; first < c->vocab; first += SF_WARP) {
            float l;
            double x = 0;
            bool in = kept(c, limit, first + (int32_t)lane_of_thread(), &left, &l, &x);
            whole up_to = in ? (whole)sf_choice_weight(x) : 0;
            for (int by = 1; by < SF_WARP; by *= 2) {
                whole other = __shfl_up_sync(SF_FULL_MASK, up_to, by);
                if ((int)lane_of_thread() >= by) up_to += other;
            }
            unsigned reached = __ballot_sync(SF_FULL_MASK, sum + up_to > target);
            if (reached != 0) {
                if (lane_of_thread() == 0) room->token[0] = first + __ffs((int)reached) - 1;
                break;
            }
            sum += __shfl_sync(SF_FULL_MASK, up_to, SF_WARP - 1);
        }
    }
    __syncthreads();
    int32_t token = room->token[0];
    __syncthreads();
    return token;
}

/* ---- choice --------------------------------------------------------------------------------- */

static __device__ __forceinline__ int32_t choose_token(struct choosing *c, const struct row_in &in,
                                       const struct shared_room *room)
{
    struct best best = look(c, room);
    struct limit limit = { 0, 0 };
    if (best.key == 0) return -1;
    if (in.temperature <= 0) return best.token;
    c->highest = sf_choice_logit(best.key);
    c->temperature = in.temperature;
    c->floor = in.floor;
    if (in.top_k > 0 && in.top_k < c->vocab) limit = select<false>(c, (whole)in.top_k, room);
    if (in.top_p < 1) {
        cut(c, limit, room);
        uint64_t total = (uint64_t)kept_weight(c, limit, room);
        __syncthreads();
        limit = select<true>(c, (whole)sf_choice_share(in.top_p, total), room);
    }
    cut(c, limit, room);
    return draw(c, limit, in.u, room);
}

/* Biases, then penalties, each list by all threads: no token is twice in one. */
static __device__ __forceinline__ void change(sf_global<float> logits, const struct row_in &in,
                                              struct lists list)
{
    for (int32_t i = (int32_t)threadIdx.x; i < in.biases; i += THREADS) {
        struct listed one = list.entry[i];
        float value, l = logits[one.token];
        memcpy(&value, &one.value, sizeof value);
        list.before[i] = l;
        logits[one.token] = l + value;
    }
    __syncthreads();
    for (int32_t i = in.biases + (int32_t)threadIdx.x; i < in.biases + in.seen; i += THREADS) {
        struct listed one = list.entry[i];
        float l = logits[one.token];
        list.before[i] = l;
        logits[one.token] = sf_choice_penalised(l, one.value, in.repetition, in.frequency,
                                                in.presence);
    }
    __syncthreads();
}

/* The other way round. */
static __device__ __forceinline__ void change_back(sf_global<float> logits, const struct row_in &in,
                                                   struct lists list)
{
    for (int32_t i = in.biases + (int32_t)threadIdx.x; i < in.biases + in.seen; i += THREADS) {
        struct listed one = list.entry[i];
        logits[one.token] = (float)list.before[i];
    }
    __syncthreads();
    for (int32_t i = (int32_t)threadIdx.x; i < in.biases; i += THREADS) {
        struct listed one = list.entry[i];
        logits[one.token] = (float)list.before[i];
    }
    __syncthreads();
}

/* ---- scores --------------------------------------------------------------------------------- */

static __device__ __forceinline__ whole whole_weight(const struct choosing *c,
                                                       const struct shared_room *room)
{
    whole sum = 0;
    for (int32_t i = (int32_t)threadIdx.x; i < c->vocab; i += THREADS) {
        double x;
        if (there(c, c->logits[i], &x)) sum += (whole)sf_choice_weight(x);
    }
    return block_sum(sum, room->part);
}

static __device__ __forceinline__ int32_t rank_of(const struct choosing *c, int32_t token,
                                  const struct shared_room *room)
{
    float mine = c->logits[token];
    whole before = 0;
    for (int32_t i = (int32_t)threadIdx.x; i < c->vocab; i += THREADS) {
        float l = c->logits[i];
        before += l > mine || (l == mine && i < token);
    }
    return 1 + (int32_t)block_sum(before, room->part);
}

/* The likeliest, in order; returns how many there are.  The warps put theirs down as they come, and
 * a thread for each finds its place. */
static __device__ __forceinline__ int32_t find_tops(struct choosing *c, int32_t tops,
                                    sf_global<struct sf_choice_top> top,
                                    const struct shared_room *room)
{
    SF_SHARED(uint32_t, found_key, SF_CHOICE_TOPS_MAX);
    SF_SHARED(int32_t, found_token, SF_CHOICE_TOPS_MAX);
    SF_SHARED(int32_t, found, 1);
    struct limit limit = { 0, 0 };
    c->floor = -INFINITY;
    if (tops < c->vocab) limit = select<false>(c, (whole)tops, room);
    if (threadIdx.x == 0) found[0] = 0;
    cut(c, limit, room);
    int32_t begin = (int32_t)warp_of_thread() * c->part, left = limit.ties;
    for (unsigned w = 0; w < warp_of_thread(); w++) left -= ties_here(left, room->ties[w]);
    for (int32_t first = begin; first < begin + c->part && first < c->vocab; first += SF_WARP) {
        int32_t i = first + (int32_t)lane_of_thread();
        float l;
        double x;
        if (!kept(c, limit, i, &left, &l, &x)) continue;
        int32_t at = atomicAdd(found + 0, 1);
        found_key[at] = sf_choice_key(l);
        found_token[at] = i;
    }
    __syncthreads();
    int32_t n = found[0], me = (int32_t)threadIdx.x;
    if (me < n) {
        uint32_t key = found_key[me];
        int32_t token = found_token[me], place = 0;
        for (int32_t i = 0; i < n; i++)
            place += found_key[i] > key || (found_key[i] == key && found_token[i] < token);
        struct sf_choice_top one = { token, sf_choice_logit(key) };
        top[place] = one;
    }
    __syncthreads();
    return n;
}

static __global__ void __launch_bounds__(THREADS, 1)
choose_rows(int32_t vocab, sf_global<float> logits, size_t stride,
            sf_global<const struct row_in> in, sf_global<const struct listed> entry,
            sf_global<float> before, sf_global<struct sf_choice> choice_out,
            sf_global<struct sf_choice_top> top_out)
{
    SF_SHARED(whole, digit, DIGITS);
    SF_SHARED(whole, part, WARPS);
    SF_SHARED(int32_t, ties, WARPS);
    SF_SHARED(uint32_t, key, WARPS);
    SF_SHARED(int32_t, token, WARPS);
    const struct shared_room room = { digit, part, ties, key, token };
    const struct row_in row = in[blockIdx.x];
    sf_global<float> mine = logits + (size_t)(uint32_t)row.row * stride;
    int32_t share = (vocab + WARPS - 1) / WARPS;
    struct choosing c = { mine, vocab, (share + SF_WARP - 1) / SF_WARP * SF_WARP, 0, 1,
                          SF_CHOICE_LEAST };
    struct sf_choice choice = { -1, 0, 0, 0, 0, 0, 0 };
    struct best best = look(&c, &room);
    if (best.key != 0 && row.sample) {
        struct lists list = { entry + row.list, before + row.list };
        bool changed = row.biases + row.seen > 0;
        if (changed) change(mine, row, list);
        choice.token = choose_token(&c, row, &room);
        if (changed) change_back(mine, row, list);
    }
    int32_t scored = row.score == SF_SCORE_CHOSEN ? choice.token : row.score;
    if (best.key != 0 && scored >= 0) {
        c.highest = sf_choice_logit(best.key);
        c.temperature = 1;
        c.floor = SF_CHOICE_LEAST;
        choice.scored = scored;
        choice.highest = c.highest;
        choice.logit = mine[scored] + 0.0f;
        choice.sum = (uint64_t)whole_weight(&c, &room);
        choice.rank = rank_of(&c, scored, &room);
        if (row.tops > 0)
            choice.tops = find_tops(&c, row.tops, top_out + (size_t)blockIdx.x * SF_CHOICE_TOPS_MAX,
                                    &room);
    }
    if (threadIdx.x == 0) choice_out[blockIdx.x] = choice;
}

/* ---- launch --------------------------------------------------------------------------------- */

static void pack(const struct sf_choose_row *row, int32_t list_first, struct row_in *in,
                 struct listed *list)
{
    int32_t n = list_first;
    *in = { row->temperature, sf_choice_floor(row->min_p), row->top_p, row->presence,
            row->frequency, row->repetition, row->u, row->row, row->sample, row->top_k,
            row->sample ? row->biases : 0, row->sample ? row->seen : 0, list_first, row->score,
            row->tops };
    for (int32_t i = 0; i < in->biases; i++) {
        list[n].token = row->bias[i].token;
        memcpy(&list[n++].value, &row->bias[i].value, sizeof list->value);
    }
    for (int32_t i = 0; i < in->seen; i++)
        list[n++] = { row->token[i].token, row->token[i].count };
}

/* A block of the ring: rows, their lists, and room for what the lists' logits were; of `lists`
 * entries in all. */
struct cut_of_ring { size_t list_at, before_at, bytes; };
static struct cut_of_ring cut_of(size_t rows, size_t lists)
{
    struct cut_of_ring at;
    at.list_at = rows * sizeof(struct row_in);
    at.before_at = at.list_at + sf_cuda_part(lists * sizeof(struct listed));
    at.bytes = at.before_at + lists * sizeof(float);
    return at;
}

static size_t lists_of(const struct sf_choose_row *row)
{
    SF_ASSERT(row->biases <= SF_CHOICE_BIASES_MAX && row->tops <= SF_CHOICE_TOPS_MAX);
    return row->sample ? (size_t)row->biases + (size_t)row->seen : 0;
}

/* Rows from `first` on whose lists fit half of the ring; one does (static_assert below). */
static int32_t rows_at_once(const struct sf_choose_job *job, int32_t first)
{
    int32_t rows = 0;
    for (size_t lists = 0; first + rows < job->rows; rows++) {
        lists += lists_of(&job->row[first + rows]);
        if (cut_of((size_t)rows + 1, lists).bytes > SF_CUDA_HALF_BYTES) break;
    }
    SF_ASSERT(rows > 0);
    return rows;
}

/* Usually one launch. */
void sf_cuda_choose(struct sf_device *device, const struct sf_choose_job *job)
{
    struct sf_cuda *cuda = sf_cuda_of(device);
    SF_ASSERT(job->vocab <= SF_CHOICE_VOCAB_MAX);
    for (int32_t first = 0, rows; first < job->rows; first += rows) {
        size_t lists = 0;
        rows = rows_at_once(job, first);
        for (int32_t r = 0; r < rows; r++) lists += lists_of(&job->row[first + r]);
        struct cut_of_ring at = cut_of((size_t)rows, lists);
        struct sf_cuda_block block = sf_cuda_stage(cuda, at.bytes);
        struct row_in *in = (struct row_in *)(void *)block.host;
        struct listed *list = (struct listed *)(void *)(block.host + at.list_at);
        lists = 0;
        for (int32_t r = 0; r < rows; r++) {
            pack(&job->row[first + r], (int32_t)lists, &in[r], list);
            lists += lists_of(&job->row[first + r]);
        }
        block.bytes = at.before_at;     /* what follows is the device's own */
        sf_cuda_send(cuda, &block);
        SF_LAUNCH(choose_rows, (unsigned)rows, THREADS, 0, cuda->stream, job->vocab, job->logits,
                  job->stride, (const struct row_in *)(const void *)block.device,
                  (const struct listed *)(const void *)(block.device + at.list_at),
                  (float *)(void *)(block.device + at.before_at), job->choice + first,
                  job->top + (size_t)first * SF_CHOICE_TOPS_MAX);
    }
}

static_assert(sizeof(struct row_in) + (SF_CHOICE_VOCAB_MAX + SF_CHOICE_BIASES_MAX) *
              (sizeof(struct listed) + sizeof(float)) + 16 <= SF_CUDA_HALF_BYTES,
              "the lists of a row fit half of the ring");
