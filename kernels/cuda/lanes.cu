/* kernels/cuda/lanes.cu: the host side of lanes.h. */
#include "kernels/cuda/lanes.h"
#include "kernels/backend.h"

static int32_t pages_of(const struct sf_lane_part *part)
{
    return (part->slots + part->layout->page_slots - 1) / part->layout->page_slots;
}

/* Positions that a job brings: up to its last row. */
static size_t rows_of(const struct sf_attend_job *job)
{
    size_t rows = 0;
    for (int32_t i = 0; job->window != 0 && i < job->lanes; i++) {
        size_t end = (size_t)(job->lane[i].row_first + job->lane[i].rows);
        if (job->lane[i].rows > 0 && end > rows) rows = end;
    }
    return rows;
}

/* Those of its values, where they lie as they are. */
static int32_t value_pages_of(const struct sf_lane_part *part)
{
    const struct sf_lane_factors *factors = part->factors;
    if (!factors || factors->rank_v > 0) return 0;
    int32_t page_slots = factors->value_layout->page_slots;
    return (part->slots + page_slots - 1) / page_slots;
}

/* Those of its factors. */
static int32_t factor_pages_of(const struct sf_lane_part *part)
{
    const struct sf_lane_factors *factors = part->factors;
    if (!factors) return 0;
    int32_t rows = factors->rank_k > factors->rank_v ? factors->rank_k : factors->rank_v;
    return (rows + factors->layout->page_slots - 1) / factors->layout->page_slots;
}

size_t sf_cuda_lane_pages(const struct sf_attend_job *job, const struct sf_lane_job *lane)
{
    size_t pages = 0;
    for (int32_t p = -1; lane->rows > 0 && p < lane->parts; p++) {
        struct sf_lane_part part = sf_lane_part_of(&job->layout, lane, p);
        pages += (size_t)(pages_of(&part) + factor_pages_of(&part) + value_pages_of(&part));
    }
    return pages;
}

static bool layouts_alike(const struct sf_layout *a, const struct sf_layout *b)
{
    return a->dtype == b->dtype && a->page_slots == b->page_slots && a->k_dim == b->k_dim &&
           a->v_dim == b->v_dim;
}

bool sf_cuda_basis_shared(const struct sf_attend_job *job, int32_t i, int32_t part)
{
    if (i == 0) return false;
    const struct sf_lane_job *one = &job->lane[i - 1], *two = &job->lane[i];
    if (one->slots != two->slots || one->rows != two->rows || one->q_heads != two->q_heads ||
        one->parts != two->parts)
        return false;
    for (int32_t p = 0; p < two->parts; p++)
        if (one->part[p].slots != two->part[p].slots || one->part[p].picks != two->part[p].picks ||
            !one->part[p].pick != !two->part[p].pick)
            return false;
    const struct sf_lane_part *a = &one->part[part], *b = &two->part[part];
    const struct sf_lane_factors *f = a->factors, *g = b->factors;
    return f && g && !b->pick && a->pages == b->pages && layouts_alike(a->layout, b->layout) &&
           layouts_alike(f->layout, g->layout) && f->rank_k == g->rank_k &&
           f->rank_v == g->rank_v && f->turns == g->turns && f->rope_dim == g->rope_dim &&
           (f->rank_v > 0 || layouts_alike(f->value_layout, g->value_layout));
}

struct count { size_t parts, pages; };

static struct count count_of(const struct sf_attend_job *job)
{
    struct count count = { 0, 0 };
    for (int32_t i = 0; i < job->lanes; i++) {
        count.parts += (size_t)job->lane[i].parts;
        count.pages += sf_cuda_lane_pages(job, &job->lane[i]);
    }
    return count;
}

/* Copies pages behind the `used` that are there; the place of the first. */
static int32_t pages_fill(const int32_t *from, int32_t n, int32_t *pages, int32_t *used)
{
    int32_t first = *used;
    if (n > 0) memcpy(pages + first, from, (size_t)n * sizeof *pages);
    *used += n;
    return first;
}

/* Part p of lane i. */
static void part_fill(const struct sf_attend_job *job, int32_t i, int32_t p, int32_t *words,
                      int32_t *pages, int32_t *used)
{
    const struct sf_lane_job *lane = &job->lane[i];
    const struct sf_lane_part *part = &lane->part[p];
    const struct sf_lane_factors *factors = part->factors;
    const struct sf_layout *dims = factors ? factors->layout : part->layout;
    SF_ASSERT(dims->k_dim == job->layout.k_dim);
    SF_ASSERT((factors ? sf_lane_factors_v_dim(factors) : dims->v_dim) == job->layout.v_dim);
    memset(words, 0, SF_PART_WORDS * sizeof *words);
    words[0] = pages_fill(part->pages, lane->rows > 0 ? pages_of(part) : 0, pages, used);
    words[1] = part->pick ? part->picks : part->slots;
    words[2] = (int32_t)part->layout->dtype;
    words[3] = part->layout->page_slots;
    memcpy(words + SF_PART_PICKS, &part->pick, sizeof part->pick);
    if (!factors) return;
    SF_ASSERT(dims->dtype == part->layout->dtype);
    words[4] = part->layout->k_dim;
    words[5] = part->layout->v_dim;
    words[6] = pages_fill(factors->pages, lane->rows > 0 ? factor_pages_of(part) : 0, pages, used);
    words[7] = dims->page_slots;
    words[8] = factors->rank_k;
    words[9] = factors->rank_v;
    words[10] = factors->rope_dim;
    words[SF_PART_SHARED] = sf_cuda_basis_shared(job, i, p);
    memcpy(words + SF_PART_TURNS, &factors->turns, sizeof factors->turns);
    if (factors->rank_v > 0) return;
    words[11] = pages_fill(factors->value_pages, lane->rows > 0 ? value_pages_of(part) : 0, pages,
                           used);
    words[12] = (int32_t)factors->value_layout->dtype;
    words[13] = factors->value_layout->page_slots;
}

static void lanes_fill(const struct sf_attend_job *job, int32_t *lanes, int32_t *parts,
                       int32_t *pages)
{
    int32_t used = 0, part_first = 0;
    for (int32_t i = 0; i < job->lanes; i++) {
        const struct sf_lane_job *lane = &job->lane[i];
        struct sf_lane_part own = sf_lane_part_of(&job->layout, lane, -1);
        int32_t first = pages_fill(own.pages, lane->rows > 0 ? pages_of(&own) : 0, pages, &used);
        const int32_t words[SF_LANE_WORDS] = { first, lane->slots, lane->row_first, lane->rows,
                                               lane->q_first, lane->q_heads, part_first,
                                               lane->parts };
        memcpy(lanes + (size_t)i * SF_LANE_WORDS, words, sizeof words);
        for (int32_t p = 0; p < lane->parts; p++, part_first++)
            part_fill(job, i, p, parts + (size_t)part_first * SF_PART_WORDS, pages, &used);
    }
}

/*     lanes [] | parts [] | pages [] | row_pos [] | extra           each aligned to 16 bytes */
static void pack(struct sf_cuda *cuda, const struct sf_attend_job *job, struct count count,
                 size_t extra, struct sf_cuda_packed *out)
{
    size_t word = sizeof(int32_t), rows = rows_of(job);
    size_t parts_at = sf_cuda_part((size_t)job->lanes * SF_LANE_WORDS * word);
    size_t pages_at = parts_at + sf_cuda_part(count.parts * SF_PART_WORDS * word);
    size_t rows_at = pages_at + sf_cuda_part(count.pages * word);
    out->parts_at = parts_at;
    out->parts = count.parts;
    out->words_bytes = pages_at;
    out->extra_at = rows_at + sf_cuda_part(rows * word);
    out->block = sf_cuda_stage(cuda, out->extra_at + extra);
    unsigned char *host = out->block.host;
    const unsigned char *twin = out->block.device;
    lanes_fill(job, (int32_t *)(void *)host, (int32_t *)(void *)(host + parts_at),
               (int32_t *)(void *)(host + pages_at));
    if (rows > 0) memcpy(host + rows_at, job->row_pos, rows * word);
    out->view = { job->layout, job->pool, job->page_bytes, job->q, job->q_stride, job->scale,
                  job->window, (const int32_t *)(const void *)twin,
                  (const int32_t *)(const void *)(twin + parts_at),
                  (const int32_t *)(const void *)(twin + pages_at),
                  (const int32_t *)(const void *)(twin + rows_at) };
}

void sf_cuda_pack(struct sf_cuda *cuda, const struct sf_attend_job *job, size_t extra,
                  struct sf_cuda_packed *out)
{
    pack(cuda, job, count_of(job), extra, out);
}

bool sf_cuda_pack_whole(struct sf_cuda *cuda, const struct sf_attend_job *job, int32_t lanes_most,
                        size_t pages_most, struct sf_cuda_packed *out)
{
    if (job->lanes > lanes_most) return false;
    struct count count = count_of(job);
    if (count.pages + count.parts * SF_PART_WORDS > pages_most) return false;
    pack(cuda, job, count, 0, out);
    return true;
}

static bool has_picks(const int32_t *part)
{
    return part[SF_PART_PICKS] != 0 || part[SF_PART_PICKS + 1] != 0;
}

bool sf_cuda_words_alike(const struct sf_cuda_packed *packed, const unsigned char *words)
{
    if (memcmp(packed->block.host, words, packed->parts_at) != 0) return false;
    const int32_t *a = (const int32_t *)(const void *)(packed->block.host + packed->parts_at);
    const int32_t *b = (const int32_t *)(const void *)(words + packed->parts_at);
    for (size_t p = 0; p < packed->parts; p++, a += SF_PART_WORDS, b += SF_PART_WORDS)
        if (memcmp(a, b, SF_PART_TURNS * sizeof *a) != 0 || has_picks(a) != has_picks(b))
            return false;
    return true;
}
