/* kernels/cpu/pairs_dot.c: rows of bf16 times a strip of columns (pairs.h), for AVX-512 with BF16.
 *
 * A tile of up to 6 rows x 4 vectors of columns stays in registers while k goes by, two elements a
 * step: 4 bytes of a row are repeated over a vector, and 256 bytes of the strip are read once for
 * all rows of the tile.  Rows are dealt evenly to tiles, since the strip is read as often as there
 * are tiles, and a tile of one or two rows would wait for the L2 cache.
 *
 * Bound by the multiplier from 12 rows on, by reading the strip below.  So that the strip that
 * comes next is on its way in time, each tile sends for its share of that one, a line or two a
 * step.  A tile that is alone sends for nothing: there the processor's own prefetch is as good.
 *
 * Of one instruction a cycle on an AMD EPYC (Zen 4), one thread: 0.99 at k 576 with everything in
 * the L2 cache, from 4 rows on; 0.92 to 0.97 at 32 to 128 rows with weights from memory on huge
 * pages (`test_kernels_pairs cost`). */
#include "kernels/cpu/simd.inc"

#include "kernels/cpu/pairs.h"

enum { DOT_ROWS = 6, DOT_WIDE = 4 };

/* Not the intrinsic: gcc 12 copies each sum before and after it, which halves the speed. */
SF_INLINE vf dot_add(vf sum, vi w, vi x)
{
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
}

/* Named and not indexed, so that the compiler keeps them in registers. */
struct dot_sums { vf a, b, c, d; };
struct dot_strip { vi a, b, c, d; };

SF_INLINE void dot_row(struct dot_sums *sum, const struct dot_strip *w, int32_t pair,
                       const int vectors)
{
    vi repeated = viset1(pair);
    sum->a = dot_add(sum->a, w->a, repeated);
    if (vectors > 1) sum->b = dot_add(sum->b, w->b, repeated);
    if (vectors > 2) sum->c = dot_add(sum->c, w->c, repeated);
    if (vectors > 3) sum->d = dot_add(sum->d, w->d, repeated);
}

/* A pair of x; of an odd k the last one, beside a zero. */
SF_INLINE int32_t dot_pair(const uint16_t *x, const int half)
{
    int32_t pair;
    if (half) return *x;
    memcpy(&pair, x, sizeof pair);
    return pair;
}

/* Columns of a vector that are the matrix's. */
SF_INLINE __mmask16 dot_mask(const struct sf_pairs_tile *t, int32_t col)
{
    int32_t left = t->cols - col;
    return (__mmask16)(left >= W ? 0xffff : left > 0 ? (1 << left) - 1 : 0);
}

struct dot_sink { float *out; __mmask16 a, b, c, d; };

SF_INLINE struct dot_sums dot_begin(const struct sf_pairs_tile *t, const struct dot_sink *sink,
                                    size_t row, const int vectors)
{
    const vf zero = vset1(0);
    struct dot_sums sum = { zero, zero, zero, zero };
    const float *out = sink->out + row * t->out_stride;
    if (t->how != SF_PAIRS_GO_ON) return sum;
    sum.a = _mm512_maskz_loadu_ps(sink->a, out);
    if (vectors > 1) sum.b = _mm512_maskz_loadu_ps(sink->b, out + W);
    if (vectors > 2) sum.c = _mm512_maskz_loadu_ps(sink->c, out + 2 * W);
    if (vectors > 3) sum.d = _mm512_maskz_loadu_ps(sink->d, out + 3 * W);
    return sum;
}

SF_INLINE void dot_put(float *out, __mmask16 mask, vf sum, int add)
{
    if (add) sum = vadd(sum, _mm512_maskz_loadu_ps(mask, out));
    _mm512_mask_storeu_ps(out, mask, sum);
}

SF_INLINE void dot_end(const struct sf_pairs_tile *t, const struct dot_sink *sink, size_t row,
                       struct dot_sums sum, const int vectors)
{
    float *out = sink->out + row * t->out_stride;
    int add = t->how == SF_PAIRS_ADD;
    dot_put(out, sink->a, sum.a, add);
    if (vectors > 1) dot_put(out + W, sink->b, sum.b, add);
    if (vectors > 2) dot_put(out + 2 * W, sink->c, sum.c, add);
    if (vectors > 3) dot_put(out + 3 * W, sink->d, sum.d, add);
}

struct dot_six { struct dot_sums r0, r1, r2, r3, r4, r5; };

/* Rows 0 to 2 lie at x, rows 3 to 5 at x3: three addresses each come from one register and n. */
SF_INLINE void dot_step(struct dot_six *sum, const uint16_t *w, const uint16_t *x,
                        const uint16_t *x3, size_t n, const int rows, const int vectors,
                        const int half)
{
    struct dot_strip s = { .a = viload(w) };
    if (vectors > 1) s.b = viload(w + 2 * W);
    if (vectors > 2) s.c = viload(w + 4 * W);
    if (vectors > 3) s.d = viload(w + 6 * W);
    dot_row(&sum->r0, &s, dot_pair(x, half), vectors);
    if (rows > 1) dot_row(&sum->r1, &s, dot_pair(x + n, half), vectors);
    if (rows > 2) dot_row(&sum->r2, &s, dot_pair(x + 2 * n, half), vectors);
    if (rows > 3) dot_row(&sum->r3, &s, dot_pair(x3, half), vectors);
    if (rows > 4) dot_row(&sum->r4, &s, dot_pair(x3 + n, half), vectors);
    if (rows > 5) dot_row(&sum->r5, &s, dot_pair(x3 + 2 * n, half), vectors);
}

/* Tile `place` of `tiles` that share the next strip's lines.  `rows` and `vectors` are constants
 * where this is expanded. */
SF_INLINE void dot_tile(const struct sf_pairs_tile *t, int32_t row, int32_t place, int32_t tiles,
                        int32_t col, const int rows, const int vectors)
{
    const size_t step = (size_t)t->w_cols * 2, n = t->x_stride;
    const uint16_t *w = t->w + (size_t)col * 2, *x = t->x + (size_t)row * n, *x3 = x + 3 * n;
    const ptrdiff_t ahead = t->ahead - t->w;
    struct dot_sink sink = { t->out + (size_t)row * t->out_stride + (size_t)col, dot_mask(t, col),
                             dot_mask(t, col + W), dot_mask(t, col + 2 * W),
                             dot_mask(t, col + 3 * W) };
    /* Rows of y may lie far apart, and a line that is to be written has to be read first. */
    for (size_t r = 0; r < (size_t)rows; r++)
        for (int32_t v = 0; v < vectors; v++)
            __builtin_prefetch(sink.out + r * t->out_stride + v * W, 1);
    struct dot_six sum = { .r0 = dot_begin(t, &sink, 0, vectors) };
    if (rows > 1) sum.r1 = dot_begin(t, &sink, 1, vectors);
    if (rows > 2) sum.r2 = dot_begin(t, &sink, 2, vectors);
    if (rows > 3) sum.r3 = dot_begin(t, &sink, 3, vectors);
    if (rows > 4) sum.r4 = dot_begin(t, &sink, 4, vectors);
    if (rows > 5) sum.r5 = dot_begin(t, &sink, 5, vectors);
    for (int32_t steps = t->k / 2; steps > 0; steps--, x += 2, x3 += 2, w += step) {
        for (int32_t line = place; line < vectors; line += tiles)
            _mm_prefetch((const char *)(w + ahead + line * 2 * W), _MM_HINT_T1);
        dot_step(&sum, w, x, x3, n, rows, vectors, 0);
    }
    if (t->k % 2) dot_step(&sum, w, x, x3, n, rows, vectors, 1);
    dot_end(t, &sink, 0, sum.r0, vectors);
    if (rows > 1) dot_end(t, &sink, 1, sum.r1, vectors);
    if (rows > 2) dot_end(t, &sink, 2, sum.r2, vectors);
    if (rows > 3) dot_end(t, &sink, 3, sum.r3, vectors);
    if (rows > 4) dot_end(t, &sink, 4, sum.r4, vectors);
    if (rows > 5) dot_end(t, &sink, 5, sum.r5, vectors);
}

SF_INLINE void dot_columns(const struct sf_pairs_tile *t, int32_t col, const int vectors)
{
    int32_t tiles = (t->rows + DOT_ROWS - 1) / DOT_ROWS;
    for (int32_t i = 0; i < tiles; i++) {
        int32_t row = t->rows * i / tiles, rows = t->rows * (i + 1) / tiles - row;
        int32_t place = tiles == 1 ? vectors : i;   /* one alone has no share */
        switch (rows) {
        case 1: dot_tile(t, row, place, tiles, col, 1, vectors); break;
        case 2: dot_tile(t, row, place, tiles, col, 2, vectors); break;
        case 3: dot_tile(t, row, place, tiles, col, 3, vectors); break;
        case 4: dot_tile(t, row, place, tiles, col, 4, vectors); break;
        case 5: dot_tile(t, row, place, tiles, col, 5, vectors); break;
        default: dot_tile(t, row, place, tiles, col, DOT_ROWS, vectors); break;
        }
    }
}

void sf_pairs_dot(const struct sf_pairs_tile *t)
{
    int32_t col = 0, cols = (t->cols + W - 1) / W * W;
    for (; col + DOT_WIDE * W <= cols; col += DOT_WIDE * W) dot_columns(t, col, DOT_WIDE);
    for (; col + 2 * W <= cols; col += 2 * W) dot_columns(t, col, 2);
    if (col < cols) dot_columns(t, col, 1);
}
