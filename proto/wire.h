/* proto/wire.h: what coordinator and workers say to each other, as plain structs, and their packed
 * form.  The .c files of this folder are the only ones that see protobuf-c.
 *
 * A step is proportional to what changed: which sequences entered and left, and the rows to
 * compute. What the packer asserts, the unpacker verifies: bytes from another rank are not trusted
 * with an index.
 *
 * Nothing is allocated once it has warmed up: a message is packed into a buffer and unpacked into a
 * box, and both keep their memory for the next one.  What an unpacked message points at lives in
 * its box until the box is used again. */
#ifndef SHEAF_PROTO_WIRE_H
#define SHEAF_PROTO_WIRE_H
#include <stddef.h>
#include <stdint.h>
#include "base/memory.h"
#include "base/status.h"
SF_C_BEGIN

/* Message tags on the world communicator, and on the envelopes between the coordinator's thread and
 * that of rank 0's worker (base/ring.h).  An envelope's group is the data-parallel group that a
 * step is for, or the rank that a result or report is from. */
enum { SF_TAG_STEP = 1,                 /* rank 0 -> all ranks of a data-parallel group */
       SF_TAG_RESULT,                   /* last stage, tensor rank 0 -> rank 0 */
       SF_TAG_REPORT,                   /* any rank -> rank 0: receipts, errors, signals, load */
       SF_TAG_TOKENS,                   /* last stage -> first stage: a result without scores */
       SF_TAG_ACTIVATION };             /* stage -> next stage: raw f32 */

struct sf_wire_bias { int32_t token; float value; };  /* added to the token's logit */
struct sf_wire_sampling {               /* how a sequence's tokens are chosen (worker/sample.h) */
    double temperature;                 /* 0: greedy */
    double top_p, min_p;                /* (0, 1], 1: all; [0, 1], 0: all */
    double presence, frequency;         /* penalties; 0: none */
    double repetition;                  /* divisor, above 0; 1: none */
    int32_t top_k;                      /* 0: all */
    int32_t biases; struct sf_wire_bias *bias;
    uint64_t rng_key, rng_stream;
    uint8_t scores;                     /* a score comes with every token of the answer ... */
    int32_t tops;                       /* ... and with so many of the likeliest; prompt rows too */
};
/* Whether the choice of a token looks at the tokens before it. */
static inline int sf_wire_looks_back(const struct sf_wire_sampling *p)
{
    return p->repetition != 1.0 || p->frequency != 0.0 || p->presence != 0.0;
}
struct sf_wire_open {                   /* a sequence enters */
    uint64_t seq;
    int32_t prompt, tokens_max;         /* tokens_max: prompt + answer at most */
    struct sf_wire_sampling sampling;
    /* Blocks of the prompt's first tokens in the prefix cache, in order: the first `reused` are
     * there and are attached, the others are filled by this sequence as its rows are fed. */
    int32_t reused, blocks; int32_t *block;
    int32_t reused_first;               /* ids of the reused tokens: token[reused_first ..), where
                                           its sampling looks at them; -1 otherwise */
    int32_t stack;                      /* whose cache holds it: 0, or one of those beside it */
    /* 0: none.  A sequence whose scored rows are compared with its own: they come earlier in the
     * same step, at the same positions (worker/compare.h). */
    uint64_t against;
};
enum { SF_LOGITS_NONE = 0,              /* bits of an item */
       SF_LOGITS_SAMPLE = 1,            /* the last row: choose a token */
       SF_LOGITS_ROWS = 2,              /* every row: score the token that follows it */
       SF_LOGITS_LAST = 4,              /* the last row alone: score the token that follows it */
       SF_ROWS_BEFORE = 8 };            /* its rows are those of the item before it, of another
                                           stack that sees the same: computed once, put into and
                                           attended in both caches */
struct sf_wire_item {                   /* rows of one sequence */
    uint64_t seq;
    int32_t pos, rows;                  /* positions pos .. pos + rows - 1 */
    int32_t token_first;                /* its ids: token[token_first .. + rows); -1: one row, whose
                                           id is the sequence's last sample */
    int32_t next;                       /* with SF_LOGITS_ROWS or _LAST: the token after the last
                                           row; -1: not known, that row is not scored */
    uint8_t logits;                     /* these bits */
};
struct sf_wire_tighten {                /* a sequence whose cache is to become smaller */
    uint64_t seq;
    int32_t tokens;                     /* that it has, its prompt and more */
};
/* With ROOF each rank first tries, at the same time as the others, what its device can do. */
enum sf_wire_measure { SF_MEASURE_NONE, SF_MEASURE_LOAD, SF_MEASURE_ROOF };
struct sf_wire_step {
    uint64_t id;                        /* rises by one within a data-parallel group */
    int32_t batch;                      /* micro-batch */
    uint8_t stop;                       /* the run is over: nothing else is read */
    uint8_t measure;                    /* enum sf_wire_measure: every rank answers with a report
                                           that has a load */
    uint64_t *ask; int32_t asks;        /* sequences whose receipts so far are told, before all */
    uint64_t *close; int32_t closes;    /* sequences that leave, before drops and opens */
    int32_t *drop; int32_t drops;       /* blocks that leave the prefix cache, before the opens */
    struct sf_wire_tighten *tighten; int32_t tightens;  /* memory pressure; before the opens */
    struct sf_wire_open *open; int32_t opens;
    struct sf_wire_item *item; int32_t items;
    int32_t *token; int32_t tokens;
};

struct sf_wire_sample { uint64_t seq; int32_t token; };
struct sf_wire_top { int32_t token; float logprob; };
/* log probabilities of the model: natural, before biases, penalties and temperature */
struct sf_wire_score {
    uint64_t seq;
    int32_t pos, token;                 /* of the token scored: prompt or answer */
    float logprob;
    int32_t rank;                       /* 1: no token is likelier */
    float kl;                           /* nat, against the row it is compared with; else 0 */
    int32_t tops; struct sf_wire_top *top;      /* likeliest first, ties to the lower token */
};
struct sf_wire_result {
    uint64_t step; int32_t batch;
    struct sf_wire_sample *sample; int32_t samples;  /* in the order of the step's items */
    struct sf_wire_score *score; int32_t scores;     /* in the order of the step's rows */
};

struct sf_wire_receipt {                /* of one sequence on one rank */
    uint64_t seq;
    int64_t bytes_exact, bytes_stored, bytes_peak;
    int64_t slots_evicted, slots_merged, slots_requantised;
    uint32_t changed;                   /* a bit (sf_wire_changed_bit) for each entry of the stack
                                           that has changed a lane */
};
static inline int sf_wire_changed_bit(int32_t entry) { return entry < 31 ? entry : 31; }
/* Over ranks, choices or records: `sum` keeps its own seq. */
static inline void sf_wire_receipt_add(struct sf_wire_receipt *sum,
                                       const struct sf_wire_receipt *one)
{
    sum->bytes_exact += one->bytes_exact;
    sum->bytes_stored += one->bytes_stored;
    sum->bytes_peak += one->bytes_peak;
    sum->slots_evicted += one->slots_evicted;
    sum->slots_merged += one->slots_merged;
    sum->slots_requantised += one->slots_requantised;
    sum->changed |= one->changed;
}
/* Where a rank's time went, since its start. */
enum sf_phase { SF_PHASE_GEMM, SF_PHASE_ATTENTION, SF_PHASE_STATISTICS, SF_PHASE_EDIT,
                SF_PHASE_COMM, SF_PHASE_WAIT, SF_PHASE_SAMPLE, SF_PHASE_OTHER, SF_PHASES };
struct sf_wire_load {
    double seconds[SF_PHASES];
    double decode_seconds[SF_PHASES];   /* of these, in steps without a row of a prompt (or of an
                                           answer that is fed again) and the waits before them */
    /* Making factors of layer groups, on whatever thread, in the other steps; of that, what the
     * layers had to wait. */
    double prefill_factor_seconds, prefill_factor_wait_seconds;
    double step_seconds;                /* inside steps, SF_PHASE_WAIT between them not counted */
    int64_t steps, decode_steps, rows, bytes_sent, rss_peak_bytes, kv_bytes_held;
    double read_rate, flop_rate;        /* SF_MEASURE_ROOF, else 0: bytes, operations a second */
};
enum sf_wire_signal { SF_WIRE_NO_SIGNAL, SF_WIRE_DRAIN, SF_WIRE_DUMP };
struct sf_wire_report {
    int32_t rank, status;               /* status: sf_status; not SF_OK ends the job */
    char *text;                         /* its words, never NULL after unpack */
    uint64_t step;                      /* last one done */
    int64_t pages_free, pages;
    int64_t kv_bytes_stored, kv_bytes_exact;    /* of the sequences that are open */
    uint8_t signal;                     /* enum sf_wire_signal that this rank was sent */
    uint8_t measured;                   /* load holds something */
    struct sf_wire_load load;
    struct sf_wire_receipt *receipt; int32_t receipts;
};

/* SF_FORMAT with words on anything odd, packing and unpacking.  A buffer and a box start zeroed;
 * sf_buffer_free and sf_box_free take what they hold. */
sf_status sf_wire_pack_step(const struct sf_wire_step *, struct sf_buffer *out);
sf_status sf_wire_pack_result(const struct sf_wire_result *, struct sf_buffer *out);
sf_status sf_wire_pack_report(const struct sf_wire_report *, struct sf_buffer *out);
sf_status sf_wire_unpack_step(const void *bytes, size_t count, struct sf_box *,
                              struct sf_wire_step *step_out);
sf_status sf_wire_unpack_result(const void *bytes, size_t count, struct sf_box *,
                                struct sf_wire_result *result_out);
sf_status sf_wire_unpack_report(const void *bytes, size_t count, struct sf_box *,
                                struct sf_wire_report *report_out);

SF_C_END
#endif
