/* tests/unit/plan/workspace.c: buffer sizes of one step.
 *
 * Shown on a made-up model of two layers: each size is the product that workspace.h writes beside
 * it, computed here a second time from the share; buffers that a rank does not need are absent; and
 * small steps never get tiles larger than themselves. */
#include "base/memory.h"
#include "model/workspace.h"
#include "tests/check.h"

static const struct sf_layer_desc layers[2] = {
    { .q_heads = 6, .kv_heads = 3, .k_dim = 32, .v_dim = 16 },
    { .q_heads = 6, .kv_heads = 3, .k_dim = 32, .v_dim = 16 }
};
static const struct sf_model_desc desc = {
    .layers = 2, .d_model = 96, .ffn = 700, .vocab = 5000, .context = 512, .layer = layers,
    .rope_dim = 32
};

static int64_t lines(int64_t bytes)
{
    return (bytes + SF_ALIGN - 1) / SF_ALIGN * SF_ALIGN;
}

static void check_rank(int32_t tp_size, int32_t tp_rank, int32_t first, int32_t count, int fixed,
                       int32_t rows)
{
    const struct sf_placing placing = { SF_PLACE_BALANCED, NULL };
    struct sf_share share;
    struct sf_workspace ws;
    SF_MUST(sf_share_make(&desc, &placing, tp_size, tp_rank, first, count, &share));
    sf_workspace_make(&desc, &share, SF_BF16, fixed, rows, &ws);

    int32_t pad = (rows + 47) / 48 * 48, q = 0, chunks = 0;
    for (int32_t i = 0; i < count; i++) {
        int32_t here = share.chunk_ptr[i + 1] - share.chunk_ptr[i];
        if (sf_share_q_heads(&share, i) > q) q = sf_share_q_heads(&share, i);
        if (here > chunks) chunks = here;
    }
    int32_t tile = fixed ? 192 : 256, head = fixed ? 48 : 64;
    if (tile > pad) tile = pad;
    if (head > pad) head = pad;
    SF_CHECK_INT(ws.rows_pad, pad);
    SF_CHECK_INT(ws.tile_rows, tile);
    SF_CHECK_INT(ws.head_rows, head);
    SF_CHECK_INT(ws.q_heads_max, q);
    SF_CHECK_INT(ws.residual, lines((int64_t)pad * 96 * 4));
    SF_CHECK_INT(ws.normed, lines((int64_t)tile * 96 * 2));
    SF_CHECK_INT(ws.attention, lines((int64_t)pad * q * (fixed ? 128 : 16) * 2));
    SF_CHECK_INT(ws.gate_up, lines((int64_t)tile * 2 * chunks * share.chunk_cols * 4));
    SF_CHECK_INT(ws.rope, lines((int64_t)pad * 32 * 4));
    SF_CHECK_INT(ws.leaves_max, fixed ? sf_share_units_most(&desc, &share) : 1);
    SF_CHECK(!fixed || (ws.leaves_max >= q && ws.leaves_max >= chunks));
    SF_CHECK(ws.qkv >= lines((int64_t)pad * (q * 32 + ws.kv_heads_max * 48) * 4));
    SF_CHECK(ws.down_slice >= share.chunk_cols && (!fixed || ws.down_slice >= 128));
    SF_CHECK_INT(ws.transfer, share.last_stage ? 0 : lines((int64_t)pad
                                                           * ((96 + tp_size - 1) / tp_size) * 4));
    SF_CHECK_INT(ws.head_rows_in, share.last_stage ? lines((int64_t)head * 96 * 4) : 0);
    SF_CHECK_INT(ws.logits, share.last_stage ? lines((int64_t)head * share.vocab_count * 4) : 0);
    SF_CHECK_INT(ws.logits_all, share.last_stage && tp_size > 1 && tp_rank == 0
                                ? lines((int64_t)head * 5000 * 4) : 0);
    SF_CHECK_INT(ws.total, ws.residual + ws.normed + ws.qkv + ws.attention + ws.gate_up
                           + ws.activation + ws.rope + ws.transfer + ws.head_rows_in + ws.logits
                           + ws.logits_all + ws.choice);
    SF_CHECK_INT(ws.choice, share.last_stage && tp_rank == 0 ? lines(5000 * 16) : 0);
    SF_CHECK_INT(ws.choices, share.last_stage && tp_size == 1 ? lines(pad * 32) +
                             lines((int64_t)pad * 32 * 8) : 0);
    sf_share_free(&share);
}

static void sizes(void)
{
    static const int32_t rows[] = { 1, 16, 48, 49, 100, 192, 193, 256, 2048 };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int fixed = 0; fixed < 2; fixed++) {
            check_rank(1, 0, 0, 2, fixed, rows[i]);
            check_rank(2, 0, 0, 1, fixed, rows[i]);
            check_rank(2, 1, 1, 1, fixed, rows[i]);
            check_rank(4, 3, 0, 2, fixed, rows[i]);
            check_rank(6, 5, 1, 1, fixed, rows[i]);
        }
}

static const struct sf_test tests[] = { { "sizes", sizes }, { NULL, NULL } };
SF_TEST_MAIN("workspace", tests)
