/* model/bpe.c: merging adjacent symbols of a piece, lowest rank first, leftmost on ties.
 *
 *   piece "hug"      h --- u --- g        links: a list over the byte positions
 *   heap             (rank 3, at 1: u g)  (rank 9, at 0: h u)
 *   take rank 3      h --- ug             position 2 leaves the list; (h, ug) goes on the heap
 *   take rank 9      stale: position 0 now begins a pair of another rank, so it is dropped
 *
 * A piece of a few words' length has no heap: the ranks lie in a row and the least is looked for.
 *
 * Every symbol on the way is a token (checked when the tables are made), so symbols are token ids.
 * The merges lie sorted by (left, right), where a pair is found by bisection, and in a hash of open
 * addressing, which is faster.  A vocabulary that aims at the hash, so that some pair would lie far
 * from its place, is used without it. */
#include "model/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* Bytes of a piece that is merged without a heap, places that a pair may be away from its own. */
enum { SHORT_BYTES = 96, AWAY_MAX = 32, RANK_MAX = (1 << 24) - 1 };
static const uint32_t EMPTY = UINT32_MAX;

struct merge { int32_t left, right, rank; };
struct made { int32_t left, right, result, unused; };   /* 16 bytes: within a line of the cache */
struct sf_bpe {
    const struct sf_text *symbol;
    int32_t *sorted, count;             /* symbols that merges may use, by their bytes */
    struct merge *merge;
    struct made *made;                  /* [merges] by rank */
    int32_t *first;                     /* [symbols + 1] merges of left symbol i: first[i].. */
    uint32_t *place;                    /* [1 << places_log] rank << 8 | 8 bits of the hash; EMPTY;
                                           NULL: pairs are bisected for */
    int32_t places_log;
    int32_t byte_symbol[256];           /* -1: none */
};
/* symbol -1: byte without a token; rank: of the pair that begins here, -1 if it does not merge */
struct link { int32_t symbol, previous, next, rank; };

/* ---- tables -------------------------------------------------------------------------------- */

static int text_order(struct sf_text a, struct sf_text b)
{
    size_t common = a.bytes < b.bytes ? a.bytes : b.bytes;
    int order = memcmp(a.at, b.at, common);
    return order != 0 ? order : (a.bytes > b.bytes) - (a.bytes < b.bytes);
}

static int symbol_order(const void *a, const void *b, void *symbols)
{
    const struct sf_text *symbol = symbols;
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    int order = text_order(symbol[i], symbol[j]);
    return order != 0 ? order : (i > j) - (i < j);
}

int32_t sf_bpe_find(const struct sf_bpe *bpe, const char *at, size_t bytes)
{
    struct sf_text text = { at, bytes };
    int32_t low = 0, high = bpe->count;
    while (low < high) {                /* the first that is not less: the lower id on ties */
        int32_t middle = low + (high - low) / 2;
        if (text_order(bpe->symbol[bpe->sorted[middle]], text) < 0) low = middle + 1;
        else high = middle;
    }
    if (low == bpe->count || text_order(bpe->symbol[bpe->sorted[low]], text) != 0) return -1;
    return bpe->sorted[low];
}

static int merge_order(const void *a, const void *b)
{
    const struct merge *x = a, *y = b;
    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    if (x->right != y->right) return x->right < y->right ? -1 : 1;
    return (x->rank > y->rank) - (x->rank < y->rank);
}

static sf_status make_merges(struct sf_bpe *bpe, int32_t symbols, const struct sf_bpe_pair *pair,
                             int32_t pairs, char *joined)
{
    for (int32_t i = 0; i < pairs; i++) {
        struct sf_text left = pair[i].left, right = pair[i].right;
        memcpy(joined, left.at, left.bytes);
        memcpy(joined + left.bytes, right.at, right.bytes);
        bpe->merge[i] = (struct merge){ sf_bpe_find(bpe, left.at, left.bytes),
                                        sf_bpe_find(bpe, right.at, right.bytes), i };
        bpe->made[i] = (struct made){ bpe->merge[i].left, bpe->merge[i].right,
                                      sf_bpe_find(bpe, joined, left.bytes + right.bytes), 0 };
        if (bpe->made[i].left < 0 || bpe->made[i].right < 0 || bpe->made[i].result < 0)
            return SF_FAIL(SF_FORMAT, "tokenizer: merge %d joins or makes what is no token", i);
    }
    qsort(bpe->merge, (size_t)pairs, sizeof *bpe->merge, merge_order);
    int32_t at = 0;
    for (int32_t i = 0; i < symbols; i++) {
        bpe->first[i] = at;
        while (at < pairs && bpe->merge[at].left == i) at++;
    }
    bpe->first[symbols] = at;
    return SF_OK;
}

/* The highest bits are the place, the lowest 8 stand beside the rank. */
static inline uint64_t hash_of(int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    pair = (pair ^ pair >> 29) * 0x9e3779b97f4a7c15u;
    pair = (pair ^ pair >> 32) * 0xd6e8feb86659fd93u;
    return pair ^ pair >> 40;
}

/* The rank of the pair, or -1; *at_out: its place, or where the search ended: an empty one, or the
 * last that it may lie in.  What is not there is not looked for any further either. */
static inline int32_t find_place(const struct sf_bpe *bpe, int32_t left, int32_t right,
                                 size_t *at_out)
{
    uint64_t hash = hash_of(left, right);
    size_t mask = ((size_t)1 << bpe->places_log) - 1, at = hash >> (64 - bpe->places_log);
    for (int away = 0; away < AWAY_MAX; away++, at = (at + 1) & mask) {
        uint32_t place = bpe->place[at], rank = place >> 8;
        *at_out = at;
        if (place == EMPTY) return -1;
        if ((uint8_t)place == (uint8_t)hash && bpe->made[rank].left == left &&
            bpe->made[rank].right == right)
            return (int32_t)rank;
    }
    return -1;
}

/* At most half full.  Of a pair that comes twice the first, whose rank is lower, has the place. */
static sf_status make_places(struct sf_bpe *bpe, int32_t pairs)
{
    bpe->places_log = 4;
    while (((int64_t)1 << bpe->places_log) < 2 * (int64_t)pairs) bpe->places_log++;
    size_t places = (size_t)1 << bpe->places_log, at;
    bpe->place = malloc(places * sizeof *bpe->place);
    if (bpe->place == NULL) return SF_FAIL(SF_NO_MEMORY, "no memory for %d merges", pairs);
    memset(bpe->place, 0xff, places * sizeof *bpe->place);
    for (int32_t i = 0; i < pairs; i++) {
        int32_t left = bpe->made[i].left, right = bpe->made[i].right;
        if (find_place(bpe, left, right, &at) >= 0) continue;
        if (bpe->place[at] != EMPTY || i >= RANK_MAX) {
            free(bpe->place);
            bpe->place = NULL;
            break;
        }
        bpe->place[at] = (uint32_t)i << 8 | (uint8_t)hash_of(left, right);
    }
    return SF_OK;
}

sf_status sf_bpe_create(const struct sf_text *symbol, int32_t symbols,
                        const struct sf_bpe_pair *pair, int32_t pairs, struct sf_bpe **bpe_out)
{
    size_t longest = 1;
    for (int32_t i = 0; i < pairs; i++) {
        size_t bytes = pair[i].left.bytes + pair[i].right.bytes;
        if (bytes > longest) longest = bytes;
    }
    struct sf_bpe *bpe = calloc(1, sizeof *bpe);
    char *joined = malloc(longest);
    sf_status status = SF_OK;
    if (bpe != NULL) {
        bpe->sorted = calloc((size_t)symbols + 1, sizeof *bpe->sorted);
        bpe->first = calloc((size_t)symbols + 1, sizeof *bpe->first);
        bpe->merge = calloc((size_t)pairs + 1, sizeof *bpe->merge);
        bpe->made = calloc((size_t)pairs + 1, sizeof *bpe->made);
    }
    if (joined == NULL || bpe == NULL || bpe->sorted == NULL || bpe->first == NULL ||
        bpe->merge == NULL || bpe->made == NULL)
        status = SF_FAIL(SF_NO_MEMORY, "no memory for a vocabulary of %d tokens", symbols);
    if (status == SF_OK) {
        bpe->symbol = symbol;
        for (int32_t i = 0; i < symbols; i++)
            if (symbol[i].at != NULL) bpe->sorted[bpe->count++] = i;
        qsort_r(bpe->sorted, (size_t)bpe->count, sizeof *bpe->sorted, symbol_order,
                (void *)(uintptr_t)symbol);
        for (int b = 0; b < 256; b++) bpe->byte_symbol[b] = sf_bpe_find(bpe, &(char){ (char)b }, 1);
        status = make_merges(bpe, symbols, pair, pairs, joined);
        if (status == SF_OK) status = make_places(bpe, pairs);
    }
    free(joined);
    if (status != SF_OK) {
        sf_bpe_destroy(bpe);
        return status;
    }
    *bpe_out = bpe;
    return SF_OK;
}

void sf_bpe_destroy(struct sf_bpe *bpe)
{
    if (bpe == NULL) return;
    free(bpe->sorted);
    free(bpe->first);
    free(bpe->merge);
    free(bpe->made);
    free(bpe->place);
    free(bpe);
}

/* ---- encoding ------------------------------------------------------------------------------ */

static int32_t bisect_rank(const struct sf_bpe *bpe, int32_t left, int32_t right)
{
    int32_t low = bpe->first[left], end = bpe->first[left + 1], high = end;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (bpe->merge[middle].right < right) low = middle + 1;
        else high = middle;
    }
    return low < end && bpe->merge[low].right == right ? bpe->merge[low].rank : -1;
}

/* -1: the pair does not merge. */
static inline int32_t rank_of(const struct sf_bpe *bpe, int32_t left, int32_t right)
{
    size_t at;
    if (left < 0 || right < 0) return -1;
    if (bpe->place == NULL) return bisect_rank(bpe, left, right);
    return find_place(bpe, left, right, &at);
}

/* ---- short pieces ---- */

static int32_t rank_or_none(const struct sf_bpe *bpe, int32_t left, int32_t right)
{
    int32_t rank = rank_of(bpe, left, right);
    return rank < 0 ? INT32_MAX : rank;
}

/* symbol_out [count]: returns how many are left.
 *   symbol   s0   s1   s2   s3         rank[i] is that of (s_i, s_i+1); the last one has none */
static int32_t merge_short(const struct sf_bpe *bpe, const char *piece, int32_t count,
                           int32_t *symbol)
{
    int32_t rank[SHORT_BYTES];
    for (int32_t i = 0; i < count; i++) symbol[i] = bpe->byte_symbol[(unsigned char)piece[i]];
    for (int32_t i = 0; i + 1 < count; i++)
        rank[i] = rank_or_none(bpe, symbol[i], symbol[i + 1]);
    while (count > 1) {
        int32_t least = rank[0], at = 0;
        for (int32_t i = 1; i + 1 < count; i++) {
            at = rank[i] < least ? i : at;
            least = rank[i] < least ? rank[i] : least;
        }
        if (least == INT32_MAX) break;
        symbol[at] = bpe->made[least].result;
        count--;
        for (int32_t i = at + 1; i < count; i++) {
            symbol[i] = symbol[i + 1];
            rank[i - 1] = rank[i];
        }
        if (at > 0) rank[at - 1] = rank_or_none(bpe, symbol[at - 1], symbol[at]);
        if (at + 1 < count) rank[at] = rank_or_none(bpe, symbol[at], symbol[at + 1]);
    }
    return count;
}

/* ---- long ones ---- */

/* A candidate is rank << 32 | position: the order of merging is that of plain numbers.  What stands
 * there is in the links, so the heap, which a long piece reads all over, stays small.  Its nodes
 * have four children, which share a cache line. */
static void heap_push(uint64_t *heap, size_t *count, uint64_t new)
{
    size_t at = (*count)++;
    while (at > 0 && new < heap[(at - 1) / 4]) {
        heap[at] = heap[(at - 1) / 4];
        at = (at - 1) / 4;
    }
    heap[at] = new;
}

static uint64_t heap_pop(uint64_t *heap, size_t *count)
{
    uint64_t top = heap[0], last = heap[--*count];
    size_t at = 0, child;
    while ((child = 4 * at + 1) < *count) {
        size_t end = child + 4 < *count ? child + 4 : *count, least = child;
        while (++child < end)
            if (heap[child] < heap[least]) least = child;
        if (heap[least] >= last) break;
        heap[at] = heap[least];
        at = least;
    }
    heap[at] = last;
    return top;
}

/* Notes what the pair that begins at `at` may become; whatever was known about it is stale. */
static void push_pair(const struct sf_bpe *bpe, struct link *link, int32_t at, uint64_t *heap,
                      size_t *count)
{
    if (at < 0) return;
    link[at].rank = -1;
    if (link[at].next < 0) return;
    int32_t rank = rank_of(bpe, link[at].symbol, link[link[at].next].symbol);
    if (rank < 0) return;
    link[at].rank = rank;
    heap_push(heap, count, (uint64_t)rank << 32 | (uint32_t)at);
}

/* A rank belongs to one pair of symbols, and symbols only grow, so a position that has left a rank
 * never comes back to it: equal ranks mean that the candidate still holds. */
static void merge_all(const struct sf_bpe *bpe, struct link *link, int32_t bytes, uint64_t *heap)
{
    size_t count = 0;
    for (int32_t i = 0; i < bytes; i++) push_pair(bpe, link, i, heap, &count);
    while (count > 0) {
        uint64_t candidate = heap_pop(heap, &count);
        int32_t rank = (int32_t)(candidate >> 32), at = (int32_t)(candidate & UINT32_MAX);
        if (link[at].rank != rank) continue;
        int32_t right = link[at].next;
        link[at].symbol = bpe->made[rank].result;
        link[at].next = link[right].next;
        if (link[right].next >= 0) link[link[right].next].previous = at;
        link[right] = (struct link){ -1, -1, -1, -1 };
        push_pair(bpe, link, link[at].previous, heap, &count);
        push_pair(bpe, link, at, heap, &count);
    }
}

sf_status sf_tokens_push(struct sf_tokens *tokens, int32_t id)
{
    if (tokens->count == tokens->capacity) {
        void *items = tokens->id;
        SF_TRY(sf_grow(&items, &tokens->capacity, tokens->count + 1, sizeof *tokens->id));
        tokens->id = items;
    }
    tokens->id[tokens->count++] = id;
    return SF_OK;
}

sf_status sf_bpe_encode(const struct sf_bpe *bpe, const char *piece, size_t bytes,
                        struct sf_bpe_scratch *scratch, struct sf_tokens *tokens)
{
    SF_ASSERT(bytes > 0 && bytes <= INT32_MAX);
    if (bytes <= SHORT_BYTES) {
        int32_t symbol[SHORT_BYTES], left = merge_short(bpe, piece, (int32_t)bytes, symbol);
        for (int32_t i = 0; i < left; i++)
            if (symbol[i] >= 0) SF_TRY(sf_tokens_push(tokens, symbol[i]));
        return SF_OK;
    }
    /* Each merge takes one candidate and puts back at most two, so 2 * bytes candidates hold. */
    SF_TRY(sf_grow(&scratch->links, &scratch->links_capacity, bytes, sizeof(struct link)));
    SF_TRY(sf_grow(&scratch->heap, &scratch->heap_capacity, 2 * bytes, sizeof(uint64_t)));
    struct link *link = scratch->links;
    int32_t count = (int32_t)bytes;
    for (int32_t i = 0; i < count; i++)
        link[i] = (struct link){ bpe->byte_symbol[(unsigned char)piece[i]], i - 1,
                                 i + 1 < count ? i + 1 : -1, -1 };
    merge_all(bpe, link, count, scratch->heap);
    for (int32_t i = 0; i >= 0; i = link[i].next)
        if (link[i].symbol >= 0) SF_TRY(sf_tokens_push(tokens, link[i].symbol));
    return SF_OK;
}

void sf_bpe_scratch_free(struct sf_bpe_scratch *scratch)
{
    free(scratch->links);
    free(scratch->heap);
    *scratch = (struct sf_bpe_scratch){ 0 };
}
