/* proto/wire.h: what coordinator and workers say to each other, as plain structs, and their packed
 * form.  wire.c is the only file that sees protobuf-c.
 *
 * A step is proportional to what changed: which sequences entered and left, and the rows to
 * compute. What the packer asserts, the unpacker verifies: bytes from another rank are not trusted
 * with an index.  Unpacked messages own their arrays; free with the matching _free.  The biases of
 * an unpacked step's opens lie in one array of the step. */
#ifndef SHEAF_PROTO_WIRE_H
#define SHEAF_PROTO_WIRE_H
#include <stddef.h>
#include <stdint.h>
#include "base/status.h"
SF_C_BEGIN

/* Message tags on the world communicator. */
enum { SF_TAG_STEP = 1,                 /* rank 0 -> all ranks of a data-parallel group */
       SF_TAG_RESULT,                   /* last stage, tensor rank 0 -> rank 0 */
       SF_TAG_REPORT,                   /* any rank -> rank 0: receipts, errors */
       SF_TAG_TOKENS,                   /* last stage -> first stage: struct sf_wire_result too */
       SF_TAG_ACTIVATION };             /* stage -> next stage: raw f32 */

enum sf_logits { SF_LOGITS_NONE, SF_LOGITS_LAST, SF_LOGITS_ALL }; /* LAST: sample one token */

struct sf_wire_bias { int32_t token; float value; };  /* added to the token's logit */
struct sf_wire_sampling {               /* how a sequence's tokens are chosen (worker/sample.h) */
    double temperature;                 /* 0: greedy */
    double top_p, min_p;                /* (0, 1], 1: all; [0, 1], 0: all */
    double presence, frequency;         /* penalties; 0: none */
    double repetition;                  /* divisor, above 0; 1: none */
    int32_t top_k;                      /* 0: all */
    int32_t biases; struct sf_wire_bias *bias;
    uint64_t rng_key, rng_stream;
};
struct sf_wire_open {                   /* a sequence enters */
    uint64_t seq;
    int32_t prompt, tokens_max;         /* tokens_max: prompt + answer at most */
    struct sf_wire_sampling sampling;
};
struct sf_wire_item {                   /* rows of one sequence */
    uint64_t seq;
    int32_t pos, rows;                  /* positions pos .. pos + rows - 1 */
    int32_t token_first;                /* its ids: token[token_first .. + rows); -1: one row, whose
                                           id is the sequence's last sample */
    uint8_t logits;                     /* enum sf_logits */
};
struct sf_wire_step {
    uint64_t id;                        /* rises by one within a data-parallel group */
    int32_t batch;                      /* micro-batch */
    uint8_t stop;                       /* the run is over: nothing else is read */
    uint64_t *close; int32_t closes;    /* sequences that leave, before the opens */
    struct sf_wire_open *open; int32_t opens;
    struct sf_wire_item *item; int32_t items;
    int32_t *token; int32_t tokens;
    struct sf_wire_bias *biases;        /* of unpack: what the opens' biases point into */
};
/* of the model, natural log */
struct sf_wire_sample { uint64_t seq; int32_t token; float logprob; };
struct sf_wire_result {
    uint64_t step; int32_t batch;
    struct sf_wire_sample *sample; int32_t samples;  /* in the order of the step's items */
};
struct sf_wire_receipt {                /* of one sequence on one rank */
    uint64_t seq;
    int64_t bytes_exact, bytes_stored, bytes_peak;
    int64_t slots_evicted, slots_merged, slots_requantised;
};
struct sf_wire_report {
    int32_t rank, status;               /* status: sf_status; not SF_OK ends the job */
    char *text;                         /* its words, never NULL after unpack */
    uint64_t step;                      /* last one done */
    int64_t pages_free, pages;
    struct sf_wire_receipt *receipt; int32_t receipts;
};

/* A packed message on its way between the coordinator's thread and the communicator's, through a
 * ring (base/ring.h); one malloc'd block, freed by the receiver with free(). */
struct sf_envelope {
    int32_t group;                      /* to workers: data-parallel group, -1 = all.  From: rank */
    int32_t tag;                        /* SF_TAG_STEP, SF_TAG_RESULT, SF_TAG_REPORT */
    size_t bytes;
    unsigned char data[];
};

/* pack: malloc'd bytes, caller frees with free(). unpack: SF_FORMAT with words on anything odd. */
sf_status sf_wire_pack_step(const struct sf_wire_step *, void **bytes_out, size_t *count_out);
sf_status sf_wire_unpack_step(const void *bytes, size_t count, struct sf_wire_step *step_out);
void      sf_wire_step_free(struct sf_wire_step *);
sf_status sf_wire_pack_result(const struct sf_wire_result *, void **bytes_out, size_t *count_out);
sf_status sf_wire_unpack_result(const void *bytes, size_t count, struct sf_wire_result *out);
void      sf_wire_result_free(struct sf_wire_result *);
sf_status sf_wire_pack_report(const struct sf_wire_report *, void **bytes_out, size_t *count_out);
sf_status sf_wire_unpack_report(const void *bytes, size_t count, struct sf_wire_report *out);
void      sf_wire_report_free(struct sf_wire_report *);

SF_C_END
#endif
